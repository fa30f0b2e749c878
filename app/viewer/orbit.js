// Turning, moving and zooming a camera round a point, by mouse, touch and keyboard. Knows nothing of what is drawn.
// Azimuth 0 looks from +Z and grows towards +X, elevation grows upwards, both in degrees; +Y is up.

const TURN_PER_PIXEL = 0.4; // degrees
const KEY_TURN = 5; // degrees
const KEY_ZOOM = 1.15;
const STEEPEST = 89; // degrees; straight up the picture's upright is undefined
const NEAREST = 0.02, FARTHEST = 20; // of the first distance

const radians = degrees => degrees * Math.PI / 180;
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const subtract = (a, b) => a.map((x, i) => x - b[i]);

export class Orbit {
    // first: {target: [x, y, z], azimuth, elevation, distance}; changed() is called after every move.
    constructor(first, changed) {
        this.first = structuredClone(first);
        this.changed = changed;
        this.reset();
    }

    reset() {
        Object.assign(this, structuredClone(this.first));
        this.changed();
    }

    set(view) {
        for (const name of ['azimuth', 'elevation', 'distance']) {
            if (Number.isFinite(view[name])) this[name] = view[name];
        }
        if (view.target?.length === 3 && view.target.every(Number.isFinite)) this.target = [...view.target];
        this.turn(0, 0);
        this.zoom(1);
    }

    get eye() {
        const flat = this.distance * Math.cos(radians(this.elevation));
        return [
            this.target[0] + flat * Math.sin(radians(this.azimuth)),
            this.target[1] + this.distance * Math.sin(radians(this.elevation)),
            this.target[2] + flat * Math.cos(radians(this.azimuth))
        ];
    }

    turn(azimuth, elevation) {
        this.azimuth = (((this.azimuth + azimuth + 180) % 360) + 360) % 360 - 180;
        this.elevation = clamp(this.elevation + elevation, -STEEPEST, STEEPEST);
        this.changed();
    }

    zoom(factor) {
        this.distance = clamp(this.distance * factor, NEAREST * this.first.distance, FARTHEST * this.first.distance);
        this.changed();
    }

    // Move the target across the picture; right and up in units of the world.
    pan(right, up) {
        const [a, e] = [radians(this.azimuth), radians(this.elevation)];
        const x = [Math.cos(a), 0, -Math.sin(a)];
        const y = [-Math.sin(e) * Math.sin(a), Math.cos(e), -Math.sin(e) * Math.cos(a)];
        this.target = this.target.map((t, i) => t + right * x[i] + up * y[i]);
        this.changed();
    }

    key(key, shift) {
        const step = 0.05 * this.distance;
        const turns = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
        if (key in turns) {
            const [x, y] = turns[key];
            shift ? this.pan(x * step, y * step) : this.turn(x * KEY_TURN, y * KEY_TURN);
        } else if (key === '+' || key === '=') this.zoom(1 / KEY_ZOOM);
        else if (key === '-' || key === '_') this.zoom(KEY_ZOOM);
        else if (key === '0' || key === 'Home') this.reset();
        else return false;
        return true;
    }

    // worldPerPixel() tells how long a pixel is at the target.
    listenTo(element, worldPerPixel) {
        const down = new Map(); // pointer -> [x, y]
        element.addEventListener('pointerdown', event => {
            element.setPointerCapture(event.pointerId);
            down.set(event.pointerId, [event.clientX, event.clientY]);
        });
        for (const end of ['pointerup', 'pointercancel', 'lostpointercapture']) {
            element.addEventListener(end, event => down.delete(event.pointerId));
        }
        element.addEventListener('pointermove', event => {
            const before = down.get(event.pointerId);
            if (!before) return;
            const now = [event.clientX, event.clientY], [dx, dy] = subtract(now, before);
            down.set(event.pointerId, now);
            if (down.size === 1) {
                const pans = event.shiftKey || (event.buttons & 6) !== 0; // right or middle button
                pans ? this.pan(-dx * worldPerPixel(), dy * worldPerPixel()) : this.turn(-dx * TURN_PER_PIXEL, dy * TURN_PER_PIXEL);
            } else if (down.size === 2) {
                const [other] = [...down].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
                const spread = at => Math.hypot(...subtract(at, other));
                this.zoom(clamp(spread(before) / Math.max(spread(now), 1), 0.5, 2));
                this.pan(-dx / 2 * worldPerPixel(), dy / 2 * worldPerPixel()); // each finger moves the middle by half
            }
        });
        element.addEventListener('wheel', event => {
            event.preventDefault();
            const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
            this.zoom(Math.exp(clamp(event.deltaY * lines, -200, 200) * 0.0015));
        }, { passive: false });
        element.addEventListener('contextmenu', event => event.preventDefault());
        element.addEventListener('dblclick', () => this.reset());
    }
}
