// Holds what a port wrote against test vectors, which `python -m conformance export --vectors DIR` writes.
//   node check.js DIR/float32.safetensors mine.safetensors [CASE]
// mine.safetensors has F32 tensors called CASE/CALL/TAP. Exit status: 0 near enough, 1 too far, 2 cannot be judged.
// Nothing that a header says is believed before the file bears it out.
"use strict";
const { readFileSync } = require("node:fs");
const WIDTHS = { F32: 4, U8: 1 };

function stop(why) {
  console.error(why);
  process.exit(2);
}

function load(path) {
  const bytes = readFileSync(path);
  const length = bytes.length < 8 ? Infinity : Number(bytes.readBigUInt64LE(0));
  if (length > bytes.length - 8) throw new Error("no safetensors file: its header is longer than the file");
  const header = new Map(Object.entries(JSON.parse(bytes.toString("utf8", 8, 8 + length))));
  return { path, header, data: bytes.subarray(8 + length), meta: header.get("__metadata__") ?? {} };
}

// The tensor of that name: undefined where there is none, null where its type is another.
function find(file, name, type) {
  const entry = file.header.get(name);
  if (entry === undefined) return undefined;
  if (entry.dtype !== type) return null;
  const { shape, data_offsets: [begin, end] } = entry;
  const natural = [...shape, begin, end].every((n) => Number.isSafeInteger(n) && n >= 0);
  const count = shape.reduce((a, b) => a * b, 1);
  if (!natural || end > file.data.length || end - begin !== count * WIDTHS[type])
    throw new Error(`${name} lies where it cannot`);
  const view = new DataView(file.data.buffer, file.data.byteOffset + begin, end - begin);
  return { shape, count, at: type === "F32" ? (i) => view.getFloat32(4 * i, true) : (i) => view.getUint8(i) };
}

// What is wrong with the port's tap; "" where nothing is.
function judge(vectors, mine, tap) {
  const value = find(vectors, tap, "F32"), allowed = find(vectors, `${tap}@allowed`, "F32");
  const compared = find(vectors, `${tap}@compared`, "U8"), found = find(mine, tap, "F32");
  const rows = value && allowed && compared ? value.shape[0] : 0;
  const tokens = [...Array(rows ? compared.count : 0).keys()].filter((t) => compared.at(t)); // the others do not count
  if (!rows || value.shape.length !== 2 || !value.count || allowed.count !== rows || tokens.length !== rows)
    throw new Error(`${tap} of the vectors is incomplete`);
  if (found === undefined) return "it is missing";
  if (found === null) return "its dtype is not F32";
  const width = value.shape[1], wanted = [...compared.shape, width];
  if (String(found.shape) !== String(wanted)) return `its shape is [${found.shape}], expected [${wanted}]`;
  for (let i = 0; i < found.count; i++) if (!Number.isFinite(found.at(i))) return "it has a NaN or an infinity";
  for (const [row, token] of tokens.entries()) {
    let sum = 0;
    for (let i = 0; i < width; i++) sum += (found.at(token * width + i) - value.at(row * width + i)) ** 2;
    const off = Math.sqrt(sum), last = compared.shape.at(-1);
    if (!(off <= allowed.at(row))) // so that a NaN fails
      return `token (${Math.floor(token / last)}, ${token % last}) is ${off.toPrecision(3)} off, ` +
        `allowed ${allowed.at(row).toPrecision(3)}`;
  }
  return "";
}

function main([first, second, wanted, ...more]) {
  if (!second || more.length) stop("usage: node check.js VECTORS.safetensors MINE.safetensors [CASE]");
  const vectors = load(first), mine = load(second);
  if (vectors.meta.format !== "t5g2ref-vectors" || vectors.meta.version !== "1")
    throw new Error("these are no test vectors of version 1");
  const taps = [...vectors.header.keys()].filter((name) => name.endsWith("@compared")).map((name) => name.slice(0, -9));
  const chosen = taps.filter((tap) => !wanted || tap.startsWith(`${wanted}/`)); // in the order of the computation
  if (!chosen.length) throw new Error("there is no such case: nothing was judged");
  for (const tap of chosen) {
    const wrong = judge(vectors, mine, tap);
    if (wrong) return console.log(`FAIL ${tap}: ${wrong}`), 1;
  }
  return console.log(`PASS ${chosen.length} taps`), 0;
}

try {
  process.exitCode = main(process.argv.slice(2));
} catch (error) {
  stop(String(error));
}
