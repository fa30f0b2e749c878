// The page of one scene: reads what is embedded in it, draws it with PlayCanvas, asks nothing of any server.
import {
    AppBase, AppOptions, Asset, CameraComponentSystem, Color, Entity, FILLMODE_FILL_WINDOW, GAMMA_SRGB, GSPLATDATA_LARGE,
    GSplatComponentSystem, GSplatHandler, RESOLUTION_AUTO, TONEMAP_NONE, WebglGraphicsDevice
} from 'playcanvas';
import { Orbit } from './orbit.js';

const BACKGROUNDS = ['#ffffff', '#808080', '#000000']; // what the key B goes through
const DEGREES_PER_SECOND = 20; // of the turntable
const SETTLED = 4; // frames drawn after the last change: an order that the sorting worker hands over is drawn in the next
const MANY = 1_500_000; // splats that a phone or an old laptop may have no memory for

const at = id => document.getElementById(id);
const root = document.documentElement;
const degrees = radians => radians * 180 / Math.PI;

function tell(sentence) {
    at('message').textContent = sentence;
    at('message').hidden = !sentence;
}

function fail(sentence) {
    root.dataset.state = 'failed';
    tell(sentence);
}

function decoded(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    return Uint8Array.from(atob(text), c => c.charCodeAt(0));
}

// The compressed PLY in the page, unpacked as it is read.
function embedded() {
    const parts = [];
    for (const element of document.querySelectorAll('script.part')) {
        parts.push(decoded(element.textContent));
        element.remove(); // its text need not stay in memory
    }
    return new Response(new Blob(parts).stream().pipeThrough(new DecompressionStream('gzip')));
}

function start(scene) {
    const canvas = at('view');
    let device;
    try {
        device = new WebglGraphicsDevice(canvas, { alpha: false, antialias: false, depth: true, powerPreference: 'high-performance' });
    } catch {
        return fail('This browser offers no WebGL 2, which drawing the splats needs. Turn on hardware acceleration in its settings, or open the page in another browser.');
    }
    device.maxPixelRatio = Math.min(window.devicePixelRatio, 2);
    const options = new AppOptions();
    Object.assign(options, {
        graphicsDevice: device,
        componentSystems: [CameraComponentSystem, GSplatComponentSystem],
        resourceHandlers: [GSplatHandler],
        devtools: false
    });
    const app = new AppBase(canvas);
    app.init(options);
    app.setCanvasFillMode(FILLMODE_FILL_WINDOW);
    app.setCanvasResolution(RESOLUTION_AUTO);
    app.autoRender = false;
    const splats = app.scene.gsplat;
    splats.minPixelSize = 0; // fine detail stays
    splats.colorUpdateAngle = 0.5; // degrees
    splats.dataFormat = GSPLATDATA_LARGE;

    const camera = new Entity('camera', app);
    camera.addComponent('camera', { gammaCorrection: GAMMA_SRGB, toneMapping: TONEMAP_NONE });
    app.root.addChild(camera);
    const model = new Entity('scene', app);
    app.root.addChild(model);

    let awake = 0; // frames still to draw
    let turning = false, sorted = false, saving;
    const wake = () => { awake = SETTLED; root.dataset.still = 'no'; };
    const orbit = new Orbit(scene, () => {
        wake();
        clearTimeout(saving);
        saving = setTimeout(remember, 400);
    });

    // The whole picture that the scene was framed for stays in view, whatever the shape of the window.
    function fieldOfView() { // vertical, radians
        const aspect = canvas.width / canvas.height;
        return 2 * Math.atan(Math.tan(scene.fov / 2 * Math.PI / 180) * Math.max(1, scene.aspect / aspect));
    }
    const worldPerPixel = () => 2 * orbit.distance * Math.tan(fieldOfView() / 2) / canvas.clientHeight;

    function setBackground(colour) {
        at('background').value = colour;
        camera.camera.clearColor = new Color().fromString(colour);
        root.style.setProperty('--behind', colour);
        wake();
        clearTimeout(saving);
        saving = setTimeout(remember, 400);
    }

    // The view stands in the address, so that it can be bookmarked and sent.
    function remember() {
        if (turning) return;
        const round = x => Number(x.toPrecision(6));
        const words = new URLSearchParams({
            azimuth: round(orbit.azimuth), elevation: round(orbit.elevation), distance: round(orbit.distance),
            target: orbit.target.map(round), background: at('background').value
        });
        history.replaceState(null, '', `#${words}`);
    }
    function recall() {
        const words = new URLSearchParams(location.hash.slice(1));
        const number = name => words.has(name) ? Number(words.get(name)) : NaN;
        orbit.set({
            azimuth: number('azimuth'), elevation: number('elevation'), distance: number('distance'),
            target: words.get('target')?.split(',').map(Number)
        });
        setBackground(/^#[0-9a-f]{6}$/i.test(words.get('background')) ? words.get('background') : scene.background);
    }

    function setTurning(on) {
        turning = on;
        at('turn').setAttribute('aria-pressed', on);
        wake();
        if (!on) remember();
    }
    const actions = {
        reset: () => { setTurning(false); orbit.reset(); },
        turn: () => setTurning(!turning),
        shade: () => setBackground(BACKGROUNDS[(BACKGROUNDS.indexOf(at('background').value) + 1) % BACKGROUNDS.length]),
        bare: () => { document.body.classList.toggle('bare'); },
        help: () => { at('help').hidden = !at('help').hidden; },
        full: () => { document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen?.(); }
    };
    const keys = { ' ': 'turn', b: 'shade', h: 'bare', f: 'full', '?': 'help' };
    for (const name of ['reset', 'turn', 'full', 'help']) at(`${name}-button`)?.addEventListener('click', actions[name]);
    at('turn').addEventListener('click', actions.turn);
    at('background').addEventListener('input', event => setBackground(event.target.value));
    document.addEventListener('keydown', event => {
        if (event.ctrlKey || event.metaKey || event.altKey || (event.target !== canvas && event.target !== document.body)) return;
        const action = actions[keys[event.key.toLowerCase()]];
        if (action) action();
        else if (!orbit.key(event.key, event.shiftKey)) return;
        event.preventDefault();
    });
    orbit.listenTo(canvas, worldPerPixel);
    canvas.addEventListener('pointerdown', () => { canvas.focus(); if (turning) setTurning(false); });
    canvas.addEventListener('webglcontextlost', () => fail('The graphics driver gave up on this page; reload it, or open it on a machine with more graphics memory.'));
    window.addEventListener('hashchange', recall);
    new ResizeObserver(() => { app.resizeCanvas(); wake(); }).observe(root);
    app.scene.on('gsplat:sorted', () => { sorted = true; wake(); });

    app.on('update', seconds => {
        if (turning) orbit.turn(DEGREES_PER_SECOND * seconds, 0);
        if (!awake) {
            if (sorted && root.dataset.state !== 'failed') root.dataset.state = 'ready';
            root.dataset.still = 'yes';
            return;
        }
        awake -= 1;
        camera.setPosition(...orbit.eye);
        camera.lookAt(...orbit.target);
        camera.camera.fov = degrees(fieldOfView());
        camera.camera.nearClip = Math.min(0.01 * scene.distance, 0.1 * orbit.distance);
        camera.camera.farClip = 1000 * Math.max(scene.distance, orbit.distance);
        app.renderNextFrame = true;
    });

    const asset = new Asset('scene', 'gsplat', { url: 'scene.ply', filename: 'scene.ply', contents: embedded() });
    asset.once('load', () => {
        model.addComponent('gsplat', { asset });
        tell('');
        wake();
    });
    asset.once('error', error => fail(`The scene in this page cannot be read (${error}); export it again.`));
    app.assets.add(asset);
    recall();
    app.start();
    app.assets.load(asset);
}

for (const kind of ['error', 'unhandledrejection']) {
    window.addEventListener(kind, event => { // once the scene is there, what goes wrong beside it need not hide it
        if (root.dataset.state === 'loading') fail(`The scene cannot be shown (${event.message ?? event.reason}).`);
    });
}
const scene = JSON.parse(at('scene').textContent);
tell(scene.count > MANY ? `Loading ${scene.count.toLocaleString('en')} splats; a phone may have too little memory for them.` : 'Loading…');
requestAnimationFrame(() => setTimeout(() => start(scene))); // let the still picture appear first
