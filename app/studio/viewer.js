"use strict";
// Shows splats (.ply) and meshes (.glb) side by side through one camera, which orbits what cameras.json looks at.
//
// The page that embeds this gives the query ?pane=LABEL|URL (once for each pane) and &cameras=URL; all from this server.
// Files are shown as they are: no display copy, no axis change. World: right-handed, +Y up, front towards +Z.
// Camera: x right, y down, z forward. Gaussians are projected as in EWA splatting (Zwicker et al. 2001) with a low-pass of
// 0.3 px^2, sorted back to front by depth in a worker, and blended; the same as splat/render draws.

const query = new URLSearchParams(location.search);
const canvas = document.getElementById("view"), said = document.getElementById("said"), stage = document.getElementById("stage");
const FOV = 0.7; // radians, of the shorter side of a pane
const LOW_PASS = 0.3; // px^2
const C0 = 0.28209479177387814, C1 = 0.4886025119029199;

// --- reading files ----------------------------------------------------------------------------------------------------

async function fetched(url) {
  if (new URL(url, location.href).origin !== location.origin) throw new Error("The file is not from this server.");
  const answer = await fetch(url, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(answer.status === 404 ? "The file is not there any more." : `The file cannot be read (${answer.status}).`);
  return answer;
}

// Gaussians of a binary PLY in the layout of 3DGS: activated, with covariances in the world.
function readSplats(buffer) {
  const head = new TextDecoder("latin1").decode(buffer.slice(0, 65536));
  const end = head.indexOf("end_header\n") + 11;
  const count = Number(/element vertex (\d+)/.exec(head)?.[1]);
  if (end < 11 || !count) throw new Error("The splats cannot be read.");
  const names = [...head.slice(0, end).matchAll(/property float (\w+)/g)].map(m => m[1]);
  const values = new DataView(buffer, end), stride = names.length * 4;
  const column = name => { const at = names.indexOf(name) * 4; return i => values.getFloat32(i * stride + at, true); };
  const [x, y, z, opacity] = ["x", "y", "z", "opacity"].map(column);
  const scale = [0, 1, 2].map(k => column(`scale_${k}`)), rot = [0, 1, 2, 3].map(k => column(`rot_${k}`));
  const rest = names.filter(name => name.startsWith("f_rest_")).length, terms = rest / 3 + 1;
  const sh = [];
  for (let k = 0; k < terms; k++) for (let c = 0; c < 3; c++) sh.push(column(k ? `f_rest_${c * (terms - 1) + k - 1}` : `f_dc_${c}`));
  const means = new Float32Array(count * 3), alphas = new Float32Array(count), covs = new Float32Array(count * 6);
  const colours = new Float32Array(count * terms * 3);
  for (let i = 0; i < count; i++) {
    means.set([x(i), y(i), z(i)], 3 * i);
    alphas[i] = 1 / (1 + Math.exp(-opacity(i)));
    const s = scale.map(f => Math.exp(f(i))), q = rot.map(f => f(i)), n = Math.hypot(...q) || 1;
    const [w, a, b, c] = q.map(v => v / n);
    const R = [1 - 2 * (b * b + c * c), 2 * (a * b - w * c), 2 * (a * c + w * b), 2 * (a * b + w * c), 1 - 2 * (a * a + c * c),
      2 * (b * c - w * a), 2 * (a * c - w * b), 2 * (b * c + w * a), 1 - 2 * (a * a + b * b)];
    const entry = (j, k) => R[3 * j] * R[3 * k] * s[0] ** 2 + R[3 * j + 1] * R[3 * k + 1] * s[1] ** 2 + R[3 * j + 2] * R[3 * k + 2] * s[2] ** 2;
    covs.set([entry(0, 0), entry(0, 1), entry(0, 2), entry(1, 1), entry(1, 2), entry(2, 2)], 6 * i);
    for (let k = 0; k < terms * 3; k++) colours[i * terms * 3 + k] = sh[k](i);
  }
  return { count, means, alphas, covs, colours, terms };
}

// The first mesh of a binary glTF: positions, triangles, and colours at the vertices or a texture.
async function readMesh(buffer) {
  const view = new DataView(buffer);
  if (view.getUint32(0, true) !== 0x46546c67) throw new Error("The mesh cannot be read.");
  const length = view.getUint32(12, true), tree = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 20, length)));
  const binary = 20 + length + 8;
  const kinds = { 5121: Uint8Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
  const widths = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };
  const read = index => {
    const accessor = tree.accessors[index], part = tree.bufferViews[accessor.bufferView], Kind = kinds[accessor.componentType];
    const width = widths[accessor.type], step = part.byteStride || width * Kind.BYTES_PER_ELEMENT;
    const start = binary + (part.byteOffset || 0) + (accessor.byteOffset || 0);
    if (step === width * Kind.BYTES_PER_ELEMENT) return { data: new Kind(buffer.slice(start, start + accessor.count * step)), width };
    const out = new Kind(accessor.count * width);
    for (let i = 0; i < accessor.count; i++) {
      const at = start + i * step;
      out.set(new Kind(buffer.slice(at, at + width * Kind.BYTES_PER_ELEMENT)), i * width);
    }
    return { data: out, width };
  };
  const primitive = tree.meshes[0].primitives[0], found = primitive.attributes;
  const positions = read(found.POSITION).data, count = positions.length / 3, colours = new Float32Array(count * 3).fill(1);
  if (found.COLOR_0 !== undefined) {
    const { data, width } = read(found.COLOR_0), whole = data instanceof Float32Array ? 1 : data instanceof Uint8Array ? 255 : 65535;
    for (let i = 0; i < count; i++) for (let c = 0; c < 3; c++) colours[3 * i + c] = data[i * width + c] / whole;
  }
  let faces = primitive.indices === undefined ? Uint32Array.from({ length: count }, (_, i) => i) : Uint32Array.from(read(primitive.indices).data);
  const uvs = found.TEXCOORD_0 === undefined ? new Float32Array(count * 2) : Float32Array.from(read(found.TEXCOORD_0).data);
  const material = tree.materials?.[primitive.material], texture = material?.pbrMetallicRoughness?.baseColorTexture;
  let picture = null;
  if (texture) {
    const image = tree.images[tree.textures[texture.index].source], part = tree.bufferViews[image.bufferView];
    const start = binary + (part.byteOffset || 0);
    const bytes = new Blob([new Uint8Array(buffer, start, part.byteLength)], { type: image.mimeType });
    picture = await createImageBitmap(bytes, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  }
  return { count: faces.length / 3, positions, colours, uvs, faces, picture };
}

// What the cameras look at, and the first of them: the pose that the view starts with. (transforms.json: OpenGL axes.)
function startFrom(cameras, box) {
  const poses = cameras.frames.map(f => f.transform_matrix);
  const A = [0, 0, 0, 0, 0, 0], b = [0, 0, 0]; // least squares to the optical axes, drawn gently to the middle of the splats
  const add = (weight, d, p) => {
    const m = [1 - d[0] * d[0], -d[0] * d[1], -d[0] * d[2], 1 - d[1] * d[1], -d[1] * d[2], 1 - d[2] * d[2]];
    for (let k = 0; k < 6; k++) A[k] += weight * m[k];
    b[0] += weight * (m[0] * p[0] + m[1] * p[1] + m[2] * p[2]);
    b[1] += weight * (m[1] * p[0] + m[3] * p[1] + m[4] * p[2]);
    b[2] += weight * (m[2] * p[0] + m[4] * p[1] + m[5] * p[2]);
  };
  for (const m of poses) add(1, [-m[0][2], -m[1][2], -m[2][2]], [m[0][3], m[1][3], m[2][3]]);
  add(0.02 * poses.length, [0, 0, 0], box.middle);
  const [a00, a01, a02, a11, a12, a22] = A;
  const c = [a11 * a22 - a12 * a12, a02 * a12 - a01 * a22, a01 * a12 - a02 * a11, a00 * a22 - a02 * a02, a01 * a02 - a00 * a12, a00 * a11 - a01 * a01];
  const det = a00 * c[0] + a01 * c[1] + a02 * c[2];
  const focus = [(c[0] * b[0] + c[1] * b[1] + c[2] * b[2]) / det, (c[1] * b[0] + c[3] * b[1] + c[4] * b[2]) / det,
    (c[2] * b[0] + c[4] * b[1] + c[5] * b[2]) / det];
  if (!focus.every(Number.isFinite)) return startBeside(box);
  const m = poses[0], away = [0, 1, 2].map(k => m[k][3] - focus[k]), distance = Math.hypot(...away) || 1;
  const frame = cameras.frames[0], width = frame.w ?? cameras.w, height = frame.h ?? cameras.h;
  const focal = frame.fl_x ?? cameras.fl_x ?? width / 2 / Math.tan((frame.camera_angle_x ?? cameras.camera_angle_x ?? 0.7) / 2);
  const fov = 2 * Math.atan(Math.min(width, height) / 2 / focal);
  return {
    focus, distance: distance * Math.tan(fov / 2) / Math.tan(FOV / 2), azimuth: Math.atan2(away[0], away[2]),
    elevation: Math.asin(Math.max(-1, Math.min(1, away[1] / distance))),
  };
}

function startBeside(box) {
  return { focus: box.middle, distance: 1.2 * box.radius / Math.sin(FOV / 2), azimuth: 0, elevation: 0.35 };
}

// Middle and radius of most points: a few stray ones do not count.
function boxOf(points) {
  const sorted = [0, 1, 2].map(k => Float32Array.from({ length: points.length / 3 }, (_, i) => points[3 * i + k]).sort());
  const at = (column, share) => column[Math.min(column.length - 1, Math.floor(share * column.length))];
  const low = sorted.map(c => at(c, 0.02)), high = sorted.map(c => at(c, 0.98));
  const middle = low.map((v, k) => (v + high[k]) / 2);
  return { middle, radius: Math.hypot(...low.map((v, k) => high[k] - v)) / 2 || 1 };
}

// --- sorting, and colours that depend on the direction: in a worker ----------------------------------------------------

function sorter() {
  let splats;
  // Real spherical harmonics up to degree 3, in the order and signs of 3DGS.
  const harmonics = (x, y, z, terms) => {
    const out = [C0];
    if (terms > 1) out.push(-C1 * y, C1 * z, -C1 * x);
    if (terms > 4) out.push(1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (2 * z * z - x * x - y * y),
      -1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y));
    if (terms > 9) out.push(-0.5900435899266435 * y * (3 * x * x - y * y), 2.890611442640554 * x * y * z,
      -0.4570457994644658 * y * (4 * z * z - x * x - y * y), 0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
      -0.4570457994644658 * x * (4 * z * z - x * x - y * y), 1.445305721320277 * z * (x * x - y * y), -0.5900435899266435 * x * (x * x - 3 * y * y));
    return out;
  };
  const coloured = eye => {
    const { count, means, alphas, colours, terms } = splats, out = new Uint8ClampedArray(count * 4);
    for (let i = 0; i < count; i++) {
      const dx = means[3 * i] - eye[0], dy = means[3 * i + 1] - eye[1], dz = means[3 * i + 2] - eye[2], n = Math.hypot(dx, dy, dz) || 1;
      const basis = terms > 1 ? harmonics(dx / n, dy / n, dz / n, terms) : [C0];
      for (let c = 0; c < 3; c++) {
        let value = 0.5;
        for (let k = 0; k < terms; k++) value += basis[k] * colours[(i * terms + k) * 3 + c];
        out[4 * i + c] = 255 * value;
      }
      out[4 * i + 3] = 255 * alphas[i];
    }
    return out;
  };
  onmessage = ({ data }) => {
    if (data.splats) { splats = data.splats; return; }
    const { count, means, terms } = splats, { eye, forward, first } = data;
    const depths = new Float32Array(count);
    let low = Infinity, high = -Infinity;
    for (let i = 0; i < count; i++) {
      const depth = (means[3 * i] - eye[0]) * forward[0] + (means[3 * i + 1] - eye[1]) * forward[1] + (means[3 * i + 2] - eye[2]) * forward[2];
      depths[i] = depth;
      if (depth > 0) { low = Math.min(low, depth); high = Math.max(high, depth); }
    }
    const bins = 65536, scale = (bins - 1) / Math.max(high - low, 1e-9), starts = new Uint32Array(bins + 1), key = new Uint16Array(count);
    let kept = 0;
    for (let i = 0; i < count; i++) {
      if (depths[i] <= 0) continue;
      key[i] = bins - 1 - Math.floor((depths[i] - low) * scale); // the farthest first
      starts[key[i] + 1]++; kept++;
    }
    for (let k = 0; k < bins; k++) starts[k + 1] += starts[k];
    const order = new Uint32Array(kept);
    for (let i = 0; i < count; i++) if (depths[i] > 0) order[starts[key[i]]++] = i;
    const colours = first || terms > 1 ? coloured(eye) : null;
    postMessage({ order, colours }, [order.buffer, ...(colours ? [colours.buffer] : [])]);
  };
}

// --- drawing ------------------------------------------------------------------------------------------------------------

const gl = canvas.getContext("webgl2", { antialias: true, alpha: false, premultipliedAlpha: false });

const SPLAT_VERTEX = `#version 300 es
precision highp float; precision highp int; precision highp sampler2D;
uniform sampler2D means, covs, last, colours; uniform mat4 view; uniform vec2 focal, size; uniform float near; uniform int width;
in vec2 corner; in uint index; out vec4 colour; out vec2 at;
vec4 texel(sampler2D t, int i) { return texelFetch(t, ivec2(i % width, i / width), 0); }
void main() {
  int i = int(index);
  vec4 mean = texel(means, i), low = texel(covs, i);
  vec3 p = (view * vec4(mean.xyz, 1.)).xyz;
  gl_Position = vec4(0., 0., 2., 1.);
  if (p.z < near) return;
  vec2 reach = 1.3 * .5 * size / focal; vec2 t = clamp(p.xy / p.z, -reach, reach) * p.z;
  mat3 V = mat3(low.x, low.y, low.z, low.y, low.w, mean.w, low.z, mean.w, texel(last, i).x);
  mat3 J = mat3(focal.x / p.z, 0., 0., 0., focal.y / p.z, 0., -focal.x * t.x / (p.z * p.z), -focal.y * t.y / (p.z * p.z), 0.);
  mat3 T = J * mat3(view); mat3 cov = T * V * transpose(T);
  float a = cov[0][0] + ${LOW_PASS}, b = cov[0][1], c = cov[1][1] + ${LOW_PASS};
  float mid = .5 * (a + c), r = length(vec2(.5 * (a - c), b)), l1 = mid + r, l2 = max(mid - r, .05);
  vec2 axis = abs(b) < 1e-6 ? (a >= c ? vec2(1., 0.) : vec2(0., 1.)) : normalize(vec2(b, l1 - a));
  vec2 px = focal * p.xy / p.z + 3.33 * (corner.x * min(sqrt(l1), 1024.) * axis + corner.y * min(sqrt(l2), 1024.) * vec2(-axis.y, axis.x));
  gl_Position = vec4(2. * px.x / size.x, -2. * px.y / size.y, 0., 1.);
  colour = texel(colours, i); at = 3.33 * corner;
}`;
const SPLAT_FRAGMENT = `#version 300 es
precision highp float; in vec4 colour; in vec2 at; out vec4 seen;
void main() {
  float alpha = min(colour.a * exp(-.5 * dot(at, at)), .999);
  if (alpha < 1. / 255.) discard;
  seen = vec4(colour.rgb * alpha, alpha);
}`;
const MESH_VERTEX = `#version 300 es
uniform mat4 view; uniform vec2 focal, size; uniform float near; in vec3 position, tint; in vec2 uv; out vec3 colour, p; out vec2 st;
void main() {
  p = (view * vec4(position, 1.)).xyz; colour = tint; st = uv;
  float far = near * 1e4;
  gl_Position = vec4(2. * focal.x * p.x / size.x, -2. * focal.y * p.y / size.y, p.z * (far + near) / (far - near) - 2. * far * near / (far - near), p.z);
}`;
const MESH_FRAGMENT = `#version 300 es
precision highp float; uniform sampler2D picture; uniform int look; in vec3 colour, p; in vec2 st; out vec4 seen;
vec3 srgb(vec3 c) { return mix(12.92 * c, 1.055 * pow(max(c, vec3(0.)), vec3(1. / 2.4)) - .055, step(.0031308, c)); }
void main() {
  vec3 n = normalize(cross(dFdx(p), dFdy(p)));
  float facing = abs(dot(n, normalize(vec3(-.4, -.6, -1.))));
  vec3 shown = look == 2 ? texture(picture, st).rgb : srgb(colour);
  seen = vec4(look == 0 ? vec3(.80, .82, .84) * (.25 + .75 * facing) : shown, 1.);
}`;

function program(vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source); gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  return { id: made, uniform: name => gl.getUniformLocation(made, name), attribute: name => gl.getAttribLocation(made, name) };
}

function dataTexture(unitsWide, rows, internal, format, type, data) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, internal, unitsWide, rows, 0, format, type, data);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
  for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
  return texture;
}

function arrayBuffer(data, kind = gl.ARRAY_BUFFER) {
  const buffer = gl.createBuffer();
  gl.bindBuffer(kind, buffer); gl.bufferData(kind, data, gl.STATIC_DRAW);
  return buffer;
}

function feed(attribute, buffer, width, integer, divisor = 0) {
  if (attribute < 0) return;
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.enableVertexAttribArray(attribute);
  if (integer) gl.vertexAttribIPointer(attribute, width, gl.UNSIGNED_INT, 0, 0);
  else gl.vertexAttribPointer(attribute, width, gl.FLOAT, false, 0, 0);
  gl.vertexAttribDivisor(attribute, divisor);
}

// Sets what a program needs of the camera.
function aim(made, camera, size, focal) {
  gl.useProgram(made.id);
  gl.uniformMatrix4fv(made.uniform("view"), false, camera.view);
  gl.uniform2f(made.uniform("focal"), focal, focal); gl.uniform2f(made.uniform("size"), ...size);
  gl.uniform1f(made.uniform("near"), camera.near);
}

class SplatPane {
  constructor(splats) {
    this.count = splats.count; this.points = splats.means; this.unit = "Gaussians";
    this.made = program(SPLAT_VERTEX, SPLAT_FRAGMENT);
    this.width = Math.min(2048, splats.count); this.rows = Math.ceil(splats.count / this.width);
    const cells = this.width * this.rows, means = new Float32Array(cells * 4), covs = new Float32Array(cells * 4), last = new Float32Array(cells);
    for (let i = 0; i < splats.count; i++) {
      means.set([...splats.means.subarray(3 * i, 3 * i + 3), splats.covs[6 * i + 4]], 4 * i);
      covs.set(splats.covs.subarray(6 * i, 6 * i + 4), 4 * i);
      last[i] = splats.covs[6 * i + 5];
    }
    const put = (internal, format, data) => dataTexture(this.width, this.rows, internal, format, gl.FLOAT, data);
    this.textures = { means: put(gl.RGBA32F, gl.RGBA, means), covs: put(gl.RGBA32F, gl.RGBA, covs), last: put(gl.R32F, gl.RED, last) };
    this.cells = new Uint8Array(cells * 4);
    this.textures.colours = dataTexture(this.width, this.rows, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, this.cells);
    this.shape = gl.createVertexArray();
    gl.bindVertexArray(this.shape);
    feed(this.made.attribute("corner"), arrayBuffer(new Float32Array([-1, -1, 1, -1, 1, 1, -1, 1])), 2, false);
    this.order = gl.createBuffer();
    feed(this.made.attribute("index"), this.order, 1, true, 1);
    gl.bindVertexArray(null);
    this.sorted = 0; this.busy = false; this.asked = "";
    const source = `const C0=${C0},C1=${C1};(${sorter})()`;
    this.worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    this.worker.postMessage({ splats });
    this.worker.onmessage = ({ data }) => this.take(data);
  }
  take({ order, colours }) {
    gl.bindBuffer(gl.ARRAY_BUFFER, this.order); gl.bufferData(gl.ARRAY_BUFFER, order, gl.DYNAMIC_DRAW);
    this.sorted = order.length; this.busy = false;
    if (colours) {
      this.cells.set(colours);
      gl.bindTexture(gl.TEXTURE_2D, this.textures.colours);
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, this.width, this.rows, gl.RGBA, gl.UNSIGNED_BYTE, this.cells);
      this.coloured = true;
    }
    redraw();
  }
  draw(camera, size, focal) {
    const pose = camera.view.join();
    if (!this.busy && pose !== this.asked) {
      this.busy = true; this.asked = pose;
      this.worker.postMessage({ eye: camera.eye, forward: camera.forward, first: !this.coloured });
    }
    if (!this.sorted) return false;
    aim(this.made, camera, size, focal);
    gl.uniform1i(this.made.uniform("width"), this.width);
    Object.entries(this.textures).forEach(([name, texture], unit) => {
      gl.activeTexture(gl.TEXTURE0 + unit); gl.bindTexture(gl.TEXTURE_2D, texture); gl.uniform1i(this.made.uniform(name), unit);
    });
    gl.disable(gl.DEPTH_TEST); gl.enable(gl.BLEND); gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.bindVertexArray(this.shape);
    gl.drawArraysInstanced(gl.TRIANGLE_FAN, 0, 4, this.sorted);
    return pose === this.asked && !this.busy;
  }
}

class MeshPane {
  constructor(mesh) {
    this.count = mesh.count; this.points = mesh.positions; this.unit = "triangles"; this.isMesh = true;
    this.made = program(MESH_VERTEX, MESH_FRAGMENT);
    this.shape = gl.createVertexArray();
    gl.bindVertexArray(this.shape);
    feed(this.made.attribute("position"), arrayBuffer(mesh.positions), 3, false);
    feed(this.made.attribute("tint"), arrayBuffer(mesh.colours), 3, false);
    feed(this.made.attribute("uv"), arrayBuffer(mesh.uvs), 2, false);
    arrayBuffer(mesh.faces, gl.ELEMENT_ARRAY_BUFFER);
    gl.bindVertexArray(null);
    this.look = mesh.picture ? 2 : 1;
    this.picture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.picture);
    if (mesh.picture) { gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, mesh.picture); gl.generateMipmap(gl.TEXTURE_2D); }
    else gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  }
  draw(camera, size, focal) {
    aim(this.made, camera, size, focal);
    gl.activeTexture(gl.TEXTURE0); gl.bindTexture(gl.TEXTURE_2D, this.picture); gl.uniform1i(this.made.uniform("picture"), 0);
    gl.uniform1i(this.made.uniform("look"), shapeOnly ? 0 : this.look);
    gl.enable(gl.DEPTH_TEST); gl.disable(gl.BLEND);
    gl.bindVertexArray(this.shape);
    gl.drawElements(gl.TRIANGLES, this.count * 3, gl.UNSIGNED_INT, 0);
    return true;
  }
}

// --- one camera for all panes ---------------------------------------------------------------------------------------------

let panes = [], orbit = null, start = null, shapeOnly = false, spinning = false, waiting = false;

function cameraNow() {
  const { focus, distance, azimuth, elevation } = orbit, ce = Math.cos(elevation), se = Math.sin(elevation);
  const out = [Math.sin(azimuth) * ce, se, Math.cos(azimuth) * ce], forward = out.map(v => -v);
  const right = [Math.cos(azimuth), 0, -Math.sin(azimuth)];
  const down = [forward[1] * right[2] - forward[2] * right[1], forward[2] * right[0] - forward[0] * right[2], forward[0] * right[1] - forward[1] * right[0]];
  const eye = focus.map((v, k) => v + distance * out[k]), dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const view = new Float32Array([right[0], down[0], forward[0], 0, right[1], down[1], forward[1], 0, right[2], down[2], forward[2], 0,
    -dot(right, eye), -dot(down, eye), -dot(forward, eye), 1]);
  return { eye, forward, view, near: 0.02 * distance, right, down };
}

function places() { // of the panes, in CSS pixels from the top left
  const width = stage.clientWidth, height = stage.clientHeight, upright = width < 560 && panes.length > 1;
  return panes.map((_, i) => upright
    ? { left: 0, top: i * height / panes.length, width, height: height / panes.length }
    : { left: i * width / panes.length, top: 0, width: width / panes.length, height });
}

function redraw() {
  if (!waiting) { waiting = true; requestAnimationFrame(draw); }
}

function draw() {
  waiting = false;
  if (!orbit || gl.isContextLost()) return;
  const ratio = Math.min(devicePixelRatio || 1, 2), full = [stage.clientWidth * ratio | 0, stage.clientHeight * ratio | 0];
  if (!full[0] || !full[1]) return;
  if (canvas.width !== full[0] || canvas.height !== full[1]) [canvas.width, canvas.height] = full;
  const paper = getComputedStyle(document.documentElement).getPropertyValue("--paper").trim();
  const rgb = [1, 3, 5].map(k => parseInt(paper.slice(k, k + 2), 16) / 255);
  const camera = cameraNow();
  gl.enable(gl.SCISSOR_TEST);
  let whole = true;
  places().forEach(({ left, top, width, height }, i) => {
    const box = [left * ratio, full[1] - (top + height) * ratio, width * ratio, height * ratio].map(Math.round);
    gl.viewport(...box); gl.scissor(...box);
    gl.clearColor(...rgb, 1); gl.depthMask(true); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const focal = Math.min(box[2], box[3]) / 2 / Math.tan(FOV / 2);
    whole = panes[i].draw(camera, [box[2], box[3]], focal) && whole;
  });
  document.body.dataset.ready = whole ? "yes" : "";
  if (spinning) { orbit.azimuth += 0.008; redraw(); }
}

function turn(dx, dy) { // radians
  orbit.azimuth -= dx;
  orbit.elevation = Math.max(-1.5, Math.min(1.5, orbit.elevation + dy));
  redraw();
}

function zoom(factor) {
  orbit.distance = Math.max(0.1 * start.distance, Math.min(6 * start.distance, orbit.distance * factor));
  redraw();
}

function pan(dx, dy) { // CSS pixels
  const { right, down } = cameraNow(), reach = 2 * start.distance;
  const scale = 2 * Math.tan(FOV / 2) * orbit.distance / Math.min(places()[0].width, places()[0].height);
  orbit.focus = orbit.focus.map((v, k) => v - scale * (dx * right[k] + dy * down[k]))
    .map((v, k) => Math.max(start.focus[k] - reach, Math.min(start.focus[k] + reach, v)));
  redraw();
}

function reset() { orbit = { ...start, focus: [...start.focus] }; redraw(); }

const fingers = new Map();
canvas.addEventListener("pointerdown", e => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, [e.clientX, e.clientY]); });
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, e => fingers.delete(e.pointerId));
canvas.addEventListener("pointermove", e => {
  const before = fingers.get(e.pointerId);
  if (!before || !orbit) return;
  const now = [e.clientX, e.clientY], dx = now[0] - before[0], dy = now[1] - before[1];
  if (fingers.size === 2) {
    const other = [...fingers].find(([id]) => id !== e.pointerId)[1];
    const gap = p => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
    zoom(gap(before) / gap(now)); pan(dx / 2, dy / 2);
  } else if (e.buttons === 2 || e.buttons === 4 || e.shiftKey) pan(dx, dy);
  else turn(dx * 0.01, dy * 0.01);
  fingers.set(e.pointerId, now);
});
canvas.addEventListener("contextmenu", e => e.preventDefault());
canvas.addEventListener("wheel", e => { // the page scrolls on until the view has been clicked
  if (!orbit || (document.activeElement !== canvas && !e.ctrlKey)) return;
  e.preventDefault();
  zoom(Math.exp(Math.max(-0.3, Math.min(0.3, e.deltaY * 0.0015))));
}, { passive: false });
canvas.addEventListener("keydown", e => {
  const step = 0.12, keys = {
    ArrowLeft: () => turn(-step, 0), ArrowRight: () => turn(step, 0), ArrowUp: () => turn(0, step), ArrowDown: () => turn(0, -step),
    "+": () => zoom(0.9), "=": () => zoom(0.9), "-": () => zoom(1.1), Home: reset, 0: reset,
  };
  if (!orbit || !keys[e.key] || e.ctrlKey || e.metaKey) return;
  e.preventDefault(); keys[e.key]();
});
const toggle = (id, act) => {
  const button = document.getElementById(id);
  button.addEventListener("click", () => { const on = button.getAttribute("aria-pressed") !== "true"; button.setAttribute("aria-pressed", on); act(on); redraw(); });
};
toggle("spin", on => { spinning = on; });
toggle("shape", on => { shapeOnly = on; });
document.getElementById("home").addEventListener("click", () => orbit && reset());

// --- light and dark as the page around it, labels, and the start --------------------------------------------------------

function shade() {
  let dark = matchMedia("(prefers-color-scheme: dark)").matches;
  try { if (parent !== window) dark = parent.document.body.classList.contains("dark"); } catch { /* embedded elsewhere */ }
  document.documentElement.classList.toggle("dark", dark);
  redraw();
}
try { if (parent !== window) new MutationObserver(shade).observe(parent.document.body, { attributeFilter: ["class"] }); } catch { /* as above */ }

function label() {
  stage.querySelectorAll(".label, .seam").forEach(e => e.remove());
  places().forEach((place, i) => {
    const chip = Object.assign(document.createElement("div"), { className: "label" }), name = document.createElement("b");
    name.textContent = panes[i].name;
    chip.append(name, ` ${panes[i].count.toLocaleString("en")} ${panes[i].unit}`);
    chip.style.cssText = `left:${place.left + 8}px;top:${place.top + 8}px`;
    stage.append(chip);
    if (i) {
      const seam = Object.assign(document.createElement("div"), { className: "seam" });
      seam.style.cssText = place.left ? `left:${place.left}px;top:0;width:1px;height:100%` : `left:0;top:${place.top}px;width:100%;height:1px`;
      stage.append(seam);
    }
  });
}
canvas.addEventListener("webglcontextlost", () => { document.body.dataset.ready = ""; location.reload(); });
new ResizeObserver(() => { label(); redraw(); }).observe(stage);

async function open() {
  if (!gl) throw new Error("This browser draws no WebGL 2; the turntable and the downloads show the same.");
  const read = async given => {
    const cut = given.indexOf("|"), name = given.slice(0, cut), url = given.slice(cut + 1), buffer = await (await fetched(url)).arrayBuffer();
    const pane = new URL(url, location.href).pathname.endsWith(".glb") ? new MeshPane(await readMesh(buffer)) : new SplatPane(readSplats(buffer));
    return Object.assign(pane, { name });
  };
  panes = await Promise.all(query.getAll("pane").slice(0, 4).map(read));
  const box = boxOf(panes[0].points);
  const cameras = query.get("cameras") ? await (await fetched(query.get("cameras"))).json().catch(() => null) : null;
  start = cameras?.frames?.length ? startFrom(cameras, box) : startBeside(box);
  document.getElementById("shape").hidden = !panes.some(pane => pane.isMesh);
  said.remove(); reset(); label();
}
shade();
open().catch(error => { said.textContent = error.message; document.body.dataset.failed = "yes"; });
