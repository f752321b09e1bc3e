// Draw cartoon portraits and write their attributes: <out>/<id>.png, <out>/attributes.jsonl, <out>/CREDITS.txt.
//
//     npm install --prefix build/dicebear @dicebear/core@9.4.3 @dicebear/collection@9.4.3 @resvg/resvg-js@2.6.2
//     node tools/synthetic/portraits.mjs --packages build/dicebear --out data/synthetic/portraits-drawn-64
//
// Options: --num (30000), --size-px (64), --seed (0). A portrait depends only on seed and id. If the command is
// interrupted, run it again to continue; attributes.jsonl is written last. Then run tools/synthetic/portraits.py, which
// writes captions and the layout of MM-CelebA-HQ.
//
// The designs are by other authors, see CREDITS.txt next to the pictures: Lorelei, Notionists and Open Peeps are CC0
// 1.0; Personas by Draftbit, Micah's Avatar Illustration System and Adventurer are CC BY 4.0, which requires
// attribution.

import {existsSync, mkdirSync, readFileSync, renameSync, writeFileSync} from "node:fs";
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";
import {parseArgs} from "node:util";

import {BACKGROUNDS, STYLES, WEIGHTS} from "./portrait_styles.mjs";

const {values: options} = parseArgs({
  options: {
    packages: {type: "string", default: "."},
    out: {type: "string"},
    num: {type: "string", default: "30000"},
    "size-px": {type: "string", default: "64"},
    seed: {type: "string", default: "0"},
  },
});

const ATTRIBUTES = [
  "background",
  "skin",
  "hair_colour",
  "hair",
  "mood",
  "glasses",
  "facial_hair",
  "earrings",
  "clothing",
];
const WITHOUT_HAIR = ["bald", "cap", "beanie", "hat", "turban", "headscarf"];

// Return a generator of numbers in [0, 1), seeded by a string: FNV-1a for the state, mulberry32 for the sequence.
function randomNumbers(text) {
  let state = 0x811c9dc5;
  for (const character of text) state = Math.imul(state ^ character.charCodeAt(0), 0x01000193);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function pick(random, names, weights = {}) {
  const total = names.reduce((sum, name) => sum + (weights[name] ?? 1), 0);
  let left = random() * total;
  return names.find((name) => (left -= weights[name] ?? 1) < 0) ?? names.at(-1);
}

// Return the attributes of a portrait, null if they are not visible, and its DiceBear options.
function choose(id) {
  const random = randomNumbers(`${options.seed}/${id}`);
  const style = pick(random, Object.keys(STYLES));
  const table = {...STYLES[style], background: BACKGROUNDS};
  const attributes = {id, style};
  const dicebearOptions = {...table.options};
  for (const name of ATTRIBUTES) {
    const onlyBlack = name === "hair" && attributes.hair_colour === "black" ? table.black_hair : undefined;
    const values = table[name] && {...table[name], ...onlyBlack};
    attributes[name] = values ? pick(random, Object.keys(values), table.weights?.[name] ?? WEIGHTS[name]) : null;
    Object.assign(dicebearOptions, values?.[attributes[name]]);
  }
  return {attributes: visible(attributes), dicebearOptions, collection: table.collection};
}

// A head without hair has no hair colour, facial hair hides the mouth, and a headscarf the clothes.
function visible(attributes) {
  return {
    ...attributes,
    clothing: attributes.hair === "headscarf" ? null : attributes.clothing,
    hair_colour: WITHOUT_HAIR.includes(attributes.hair) ? null : attributes.hair_colour,
    mood: attributes.facial_hair === "none" ? attributes.mood : null,
  };
}

function write(path, content) {
  writeFileSync(`${path}.tmp`, content);
  renameSync(`${path}.tmp`, path);
}

async function load(name, file) {
  const path = resolve(options.packages, "node_modules", name, file);
  if (!existsSync(path)) {
    fail(`${path} is missing: run npm install --prefix ${options.packages} ${name}, or pass another --packages`);
  }
  return import(pathToFileURL(path));
}

function fail(message) {
  console.error(`portraits.mjs: ${message}`);
  process.exit(1);
}

function wholeNumber(name, least) {
  const number = Number(options[name]);
  if (!Number.isInteger(number) || number < least) {
    fail(`--${name} must be an integer >= ${least}, got ${options[name]}`);
  }
  return number;
}

function credits(collection) {
  const lines = Object.values(STYLES).map(({collection: name}) => {
    const {title, creator, source, license} = collection[name].meta;
    return `${name}: "${title}" by ${creator} (${source}), ${license.name} (${license.url})`;
  });
  const drawnBy = "The portraits are drawn by DiceBear (https://www.dicebear.com, code under MIT) from these designs,";
  return `${drawnBy} recoloured, combined and cut to size:\n\n${lines.join("\n")}\n`;
}

async function main() {
  const num = wholeNumber("num", 1);
  const sizePx = wholeNumber("size-px", 16);
  if (!options.out) fail("--out is missing: pass the folder to write");
  const {createAvatar} = await load("@dicebear/core", "lib/index.js");
  const collection = await load("@dicebear/collection", "lib/index.js");
  const {Resvg} = (await load("@resvg/resvg-js", "index.js")).default;
  mkdirSync(options.out, {recursive: true});
  const recipe = `${JSON.stringify({size_px: sizePx, seed: options.seed, styles: STYLES, weights: WEIGHTS})}\n`;
  const recipePath = join(options.out, "recipe.json");
  if (existsSync(recipePath) && readFileSync(recipePath, "utf8") !== recipe) {
    fail(`${options.out} was written with other options or tables: pass another --out, or delete the folder`);
  }
  write(recipePath, recipe);
  const rows = [];
  for (let id = 0; id < num; id++) {
    const {attributes, dicebearOptions, collection: name} = choose(id);
    rows.push(JSON.stringify(attributes));
    const path = join(options.out, `${id}.png`);
    if (!existsSync(path)) {
      const svg = createAvatar(collection[name], {...dicebearOptions, seed: `${options.seed}/${id}`}).toString();
      write(path, new Resvg(svg, {fitTo: {mode: "width", value: sizePx}}).render().asPng());
    }
    if (id % 100 === 99 || id === num - 1) process.stderr.write(`\r${id + 1} of ${num} portraits`);
  }
  process.stderr.write("\n");
  write(join(options.out, "CREDITS.txt"), credits(collection));
  write(join(options.out, "attributes.jsonl"), `${rows.join("\n")}\n`);
}

await main();
