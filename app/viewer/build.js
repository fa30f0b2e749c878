// node build.js [OUT]: bundle the viewer into one script. Run where npm has put node_modules beside this file: make viewer.
import { readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { build, version as esbuildVersion } from 'esbuild';

const here = name => fileURLToPath(new URL(name, import.meta.url));
const out = process.argv[2] ?? here('viewer.min.js');
const engine = JSON.parse(await readFile(here('node_modules/playcanvas/package.json'), 'utf8'));
const licence = (await readFile(here('node_modules/playcanvas/LICENSE'), 'utf8')).trim();
const banner = `/*!
The viewer of splatsmith (Apache-2.0), bundled by esbuild ${esbuildVersion} with playcanvas ${engine.version}, changed in its
shaders of splats as app/viewer/build.js says. The licence of playcanvas:

${licence}
*/`;

// Where the engine draws otherwise than our renders do, in files of its src/scene. Each text must be there once.
const REACH = Math.log(255); // half the squared distance in standard deviations at which a solid splat has faded to 1/255
const edits = {
    // It fades a splat to nothing at 2.8 standard deviations; ours ends where it is fainter than 1/255.
    'shader-lib/glsl/chunks/gsplat/frag/gsplat.js': [['(exp(x * -4.0) - EXP4) * INV_EXP4', `exp(x * -${REACH})`]],
    'shader-lib/glsl/chunks/gsplat/vert/gsplatCommon.js': [
        ['log(alpha / alphaClipValue))) * 0.5', `log(alpha / alphaClipValue))) * ${1 / Math.sqrt(REACH)}`]
    ],
    'shader-lib/glsl/chunks/gsplat/vert/gsplatCorner.js': [
        ['2.0 * min(sqrt(2.0 * lambda1), vmin)', `${Math.sqrt(REACH)} * min(sqrt(2.0 * lambda1), vmin)`],
        ['2.0 * min(sqrt(2.0 * lambda2), vmin)', `${Math.sqrt(REACH)} * min(sqrt(2.0 * lambda2), vmin)`]
    ],
    // It reads bands that a compressed PLY lacks as -1/64 each, and the others not in the middle of their steps.
    'gsplat/gsplat-compressed-resource.js': [
        ['this.streams.textures.has("shTexture0") ? 3 : 0', 'this.gsplatData.shBands']
    ],
    'shader-lib/glsl/chunks/gsplat/vert/formats/compressedSH.js': [
        ['(8.0 / 255.0) - 4.0', '(8.0 / 256.0) - 3.984375'],
        ['out vec3 sh[15]', 'out vec3 sh[SH_COEFFS]'],
        ['\tsh[3] =', '#if SH_BANDS > 1\n\tsh[3] ='],
        ['\tsh[8] =', '#endif\n#if SH_BANDS > 2\n\tsh[8] ='],
        ['\tscale = 1.0;', '#endif\n\tscale = 1.0;']
    ]
};
const edited = new Set();
const asOurRenders = {
    name: 'as-our-renders',
    setup(build) {
        build.onLoad({ filter: /[\\/]playcanvas[\\/]src[\\/]scene[\\/].*\.js$/ }, async ({ path }) => {
            const name = path.replaceAll('\\', '/').split('/playcanvas/src/scene/').at(-1);
            if (!(name in edits)) return undefined;
            let contents = await readFile(path, 'utf8');
            for (const [theirs, ours] of edits[name]) {
                if (contents.split(theirs).length !== 2) throw new Error(`${name} no longer has "${theirs}" once`);
                contents = contents.replace(theirs, ours);
            }
            edited.add(name);
            return { contents };
        });
    }
};

// The page draws with WebGL alone: the engine's shaders in the language of WebGPU would be a fifth of the script.
const withoutWebGPU = {
    name: 'without-webgpu',
    setup(build) {
        build.onLoad({ filter: /[\\/]shader-lib[\\/]wgsl[\\/]chunks[\\/].*\.js$/ }, async ({ path }) => {
            const [, exported] = (await readFile(path, 'utf8')).match(/export\s*\{([^}]*)\}/);
            const names = exported.split(',').map(part => part.trim().split(/\s+as\s+/).at(-1)).filter(Boolean);
            return { contents: `const none = ""; export { ${names.map(name => `none as ${name}`).join(', ')} };` };
        });
    }
};

const result = await build({
    entryPoints: [here('main.js')],
    bundle: true,
    minify: true,
    format: 'iife',
    target: 'es2022',
    charset: 'ascii',
    legalComments: 'none',
    plugins: [withoutWebGPU, asOurRenders],
    write: false
});
const missed = Object.keys(edits).filter(name => !edited.has(name));
if (missed.length) throw new Error(`the engine no longer has ${missed.join(', ')}`);
// Inside a page, "</script" would end the script early; in a string or a template "<\/script" means the same.
const script = result.outputFiles[0].text.replaceAll('</script', '<\\/script').replaceAll('<!--', '<\\!--');
await writeFile(out, `${banner}\n${script}`);
