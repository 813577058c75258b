// What `tiepoint export --to onnx` wrote, in a browser: a port of its run.py on onnxruntime-web.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.logLevel = "error"; // not what it could not fold
const floats = (data, ...shape) => new ort.Tensor("float32", Float32Array.from(data), shape);
const longs = (data, ...shape) => new ort.Tensor("int64", BigInt64Array.from(data, BigInt), shape);
const even = x => Math.round(x) - x === 0.5 && Math.round(x) % 2 ? Math.floor(x) : Math.round(x); // as Python rounds
const row = (tensor, i) => tensor.data.subarray(i * tensor.dims[1], (i + 1) * tensor.dims[1]);
const range = n => Array.from({ length: n }, (_, i) => i);

function pick(tensor, rows) {
  const width = tensor.dims[1], data = new Float32Array(rows.length * width);
  rows.forEach((from, to) => data.set(row(tensor, from), to * width));
  return new ort.Tensor("float32", data, [rows.length, width]);
}

// Shrink the columns of an image (rows x columns) by triangular filters, and transpose it: (length x rows).
function shrink(image, rows, columns, length) {
  const step = columns / length, small = new Float32Array(length * rows);
  for (let k = 0; k < length; k++) {
    const centre = step * (k + 0.5);
    const first = Math.trunc(Math.max(centre - step + 0.5, 0));
    const last = Math.min(Math.trunc(centre + step + 0.5), columns);
    const weights = range(last - first).map(i => Math.max(1 - Math.abs(first + i - centre + 0.5) / step, 0));
    const sum = weights.reduce((a, b) => a + b);
    for (let r = 0; r < rows; r++)
      small[k * rows + r] = weights.reduce((all, weight, i) => all + weight / sum * image[r * columns + first + i], 0);
  }
  return small;
}

// Choose points in their order so that no two are closer than `radius` both in x and in y.
function suppress(points, radius, most) {
  const cells = new Map(), kept = [];
  for (const point of points) {
    const column = Math.floor(point.x / radius), line = Math.floor(point.y / radius);
    const around = [-1, 0, 1].flatMap(i => [-1, 0, 1].map(j => cells.get(`${column + i},${line + j}`)));
    const isClose = other => other && Math.max(Math.abs(point.x - other.x), Math.abs(point.y - other.y)) <= radius;
    if (around.some(isClose)) continue;
    cells.set(`${column},${line}`, point);
    if (kept.push(point) === most) break;
  }
  return kept;
}

export class Exported {
  static async open(folder) {
    const manifest = await (await fetch(`${folder}/manifest.json`)).json();
    return Object.assign(new Exported(), { folder, manifest, sessions: {} });
  }

  async run(name, ...given) {
    const { file, inputs, outputs } = this.manifest.graphs[name];
    this.sessions[name] ??= ort.InferenceSession.create(`${this.folder}/${file}`, { logSeverityLevel: 3 });
    const session = await this.sessions[name];
    const found = await session.run(Object.fromEntries(inputs.map((port, i) => [port.name, given[i]])));
    return outputs.map(port => found[port.name]);
  }

  // Keypoints of pixels as a canvas's ImageData holds them.
  async extract({ data, width, height }, most = 2048) {
    const settings = this.manifest.extractor, levels = [];
    const grey = new Float32Array(width * height).map((_, i) => // of red, green, blue and opacity
      (0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]) / 255);
    levels.push({ pixels: grey, w: width, h: height, start: 0 });
    for (let level = 1; level < settings.pyramid_levels; level++) {
      const [w, h] = [width, height].map(side => even(side / 2 ** (level / 2)));
      if (Math.min(w, h) < 8) break;
      const from = levels[Math.max(0, level - 2)], before = levels[level - 1];
      const pixels = shrink(shrink(from.pixels, from.h, from.w, w), w, from.h, h);
      levels.push({ pixels, w, h, start: before.start + before.pixels.length });
    }
    const points = [];
    for (const [level, { pixels, w, h }] of levels.entries()) {
      if (level === settings.detection_levels || (level && Math.min(w, h) < 24)) break;
      const [at, scores] = await this.run("detect", floats(pixels, h, w));
      scores.data.forEach((score, i) => {
        const x = Math.fround((at.data[2 * i] + 0.5) * width / w - 0.5);
        const y = Math.fround((at.data[2 * i + 1] + 0.5) * height / h - 0.5);
        points.push({ x, y, level, score });
      });
    }
    const best = points.sort((a, b) => b.score - a.score).slice(0, 4 * most);
    const good = best.filter(point => point.score > settings.detection_threshold);
    const kept = suppress(good, settings.nms_radius, most), n = kept.length;
    const all = new Float32Array(levels.reduce((sum, level) => sum + level.pixels.length, 0));
    levels.forEach(level => all.set(level.pixels, level.start));
    const positions = floats(kept.flatMap(p => [p.x, p.y]), n, 2);
    const places = longs(levels.flatMap(({ start, w, h }) => [start, w, h]), levels.length, 3);
    const [descriptors, scales, orientations] =
      await this.run("describe", floats(all, all.length), places, positions, longs(kept.map(point => point.level), n));
    return { positions, scales, orientations, descriptors, size: floats([width, height], 2), count: n };
  }

  // Matches of two results of `extract`: lists of i, j, score.
  async match(first, second) {
    const settings = this.manifest.matcher, [a, b] = [first, second].map(image => image.positions.data);
    const k = first.count === second.count ? a.findIndex((x, k) => x !== b[k]) : -1;
    if (second.count < first.count || b[k] < a[k]) { // one order of a pair, whatever the caller's is
      const found = await this.match(second, first);
      return found.map(([i, j, score]) => [j, i, score]).sort((one, other) => one[0] - other[0]);
    }
    if (first.count < 2) return [];
    const given = [first, second].flatMap(p => [p.positions, p.scales, p.orientations, p.descriptors, p.size]);
    const begun = await this.run("begin", ...given);
    const sides = [first, second].map((p, a) => ({ index: range(p.count), states: begun.slice(3 * a, 3 * a + 3) }));
    const total = first.count + second.count, exits = settings.exit_confidence, prunes = settings.prune_matchability;
    for (let i = 0; ; i++) {
      const out = await this.run(`layer${i}`, ...sides.flatMap(side => side.states));
      sides.forEach((side, a) => [side.states[0], side.matchability, side.confidence] = out.slice(a * out.length / 2));
      const waits = (side, k) => exits && side.confidence.data[k] <= Math.fround(exits[i]);
      const waiting = () => sides.reduce((sum, side) => sum + side.index.filter((_, k) => waits(side, k)).length, 0);
      if (i + 1 === settings.layers || (exits && 1 - waiting() / total > settings.exit_share)) {
        const threshold = floats([settings.match_threshold]);
        const [pairs, scores] = await this.run(`assign${i}`, sides[0].states[0], sides[1].states[0], threshold);
        const index = (side, k) => sides[side].index[pairs.data[2 * k + side]];
        return Array.from(scores.data, (score, k) => [index(0, k), index(1, k), score]);
      }
      if (!prunes) continue;
      for (const side of sides) {
        const least = Math.fround(prunes[i]);
        const stays = range(side.index.length).filter(k => waits(side, k) || side.matchability.data[k] > least);
        side.index = stays.map(k => side.index[k]);
        side.states = side.states.map(tensor => pick(tensor, stays));
      }
      if (sides.some(side => side.index.length === 0)) return [];
    }
  }
}
