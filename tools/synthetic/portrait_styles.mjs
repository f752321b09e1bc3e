// The attributes and values of portraits in each DiceBear style, in the words of the captions.
//
// Each value of an attribute has DiceBear options. DiceBear chooses one entry of a list by its own seed, and also
// noses, eyebrows and everything else that is not listed here; captions do not mention these. Parts that are not
// recognisable at 64 px, or that have no short name, are left out.

const SKINS = {light: "ffdbb4", tan: "d08b5b", dark: "8a5636"};
const HAIR_COLOURS = {
  black: "1c1a1e",
  brown: "5c3317",
  blond: "e8c46a",
  red: "b8381e",
  grey: "a8a8ac",
  blue: "2f6fd0",
  pink: "f06fa8",
  green: "2f9e58",
};
const CLOTHING_COLOURS = {
  red: "d63a3a",
  orange: "f08c2e",
  yellow: "f5d742",
  green: "3fa35a",
  blue: "3a6fd0",
  purple: "8a4fc0",
  white: "f4f4f4",
  black: "26262a",
};

export const BACKGROUNDS = coloured("backgroundColor", {
  white: "fafafa",
  grey: "b4b6ba",
  yellow: "ffe48a",
  orange: "ffb870",
  green: "a4e0a8",
  blue: "8cc4f6",
  purple: "c8b0f4",
  pink: "f8b4cc",
});

export const STYLES = {
  lorelei: {
    collection: "lorelei",
    options: {
      scale: 130,
      frecklesProbability: 0,
      hairAccessoriesProbability: 0,
      earringsProbability: 0,
      eyes: variants(2, 4, 9, 12, 16, 20, 21, 24),
      eyebrows: variants(3, 5, 8, 9, 10),
    },
    hair: {
      short: {hair: variants(1, 3, 6, 7, 8, 12, 43, 47)},
      curly: {hair: variants(5, 24, 39)},
      long: {hair: variants(15, 16, 35)},
      bob: {hair: variants(13, 17, 19, 23)},
      bun: {hair: variants(14, 38, 46)},
      pigtails: {hair: variants(26)},
      mohawk: {hair: variants(27)},
    },
    hair_colour: coloured("hairColor", HAIR_COLOURS),
    skin: coloured("skinColor", SKINS),
    mood: {
      smiling: {mouth: ["happy01", "happy02"]},
      laughing: {mouth: ["happy05", "happy07", "happy16"]},
      frowning: {mouth: ["sad04", "sad05"]},
      surprised: {mouth: ["sad01"]},
    },
    glasses: worn("glasses", {glasses: variants(1, 3, 4), sunglasses: variants(2)}),
    facial_hair: worn("beard", {beard: variants(1, 2)}),
  },
  notionists: {
    collection: "notionists",
    options: {
      scale: 150,
      translateY: 10,
      gestureProbability: 0,
      bodyIconProbability: 0,
      eyes: variants(1, 4, 5),
      brows: variants(4, 5, 7, 8, 9),
    },
    hair: {
      short: {hair: variants(5, 6, 13, 15, 24, 25, 35, 55)},
      curly: {hair: variants(20, 22, 33)},
      long: {hair: variants(23, 28, 36, 41)},
      bob: {hair: variants(2, 10)},
      bun: {hair: variants(48, 57)},
      pigtails: {hair: variants(59)},
      ponytail: {hair: variants(39, 47)},
      mohawk: {hair: variants(44)},
      cap: {hair: ["hat"]},
      turban: {hair: variants(61)},
      headscarf: {hair: variants(62, 63)},
    },
    hair_colour: {black: {}},
    mood: {
      smiling: {lips: variants(3, 17, 22, 23)},
      laughing: {lips: variants(8, 10, 11, 25)},
      frowning: {lips: variants(18)},
      surprised: {lips: variants(15)},
    },
    glasses: worn("glasses", {glasses: variants(3, 8, 11), sunglasses: variants(1, 2, 5, 10)}),
    facial_hair: worn("beard", {beard: variants(1, 2), moustache: variants(3, 7, 10)}),
    clothing: {white: {body: variants(5, 7, 13, 14, 21)}, black: {body: variants(2, 6, 8, 17)}},
  },
  "open peeps": {
    collection: "openPeeps",
    options: {maskProbability: 0},
    hair: {
      short: {head: ["grayShort", "short4"]},
      bob: {head: ["bangs"]},
      bun: {head: ["grayBun"]},
      mohawk: {head: ["mohawk", "mohawk2"]},
      bald: {head: ["noHair1"]},
      beanie: {head: ["hatBeanie"]},
      hat: {head: ["hatHip"]},
      turban: {head: ["turban"]},
      headscarf: {head: ["hijab"]},
    },
    black_hair: {
      // These are black with all options.
      short: {head: ["short1", "short2", "short5"]},
      curly: {head: ["afro", "longAfro", "longCurly"]},
      long: {head: ["long", "longBangs", "mediumStraight"]},
      bob: {head: ["bangs2", "medium1"]},
      bun: {head: ["bun2"]},
    },
    hair_colour: coloured("headContrastColor", HAIR_COLOURS),
    weights: {hair_colour: {black: 6}},
    skin: coloured("skinColor", SKINS),
    mood: {
      smiling: {face: ["smile", "calm", "cute"]},
      laughing: {face: ["smileBig", "smileLOL", "smileTeethGap"]},
      frowning: {face: ["solemn", "veryAngry"]},
    },
    glasses: worn("accessories", {
      glasses: ["glasses", "glasses2", "glasses3", "glasses5"],
      sunglasses: ["sunglasses", "sunglasses2"],
    }),
    facial_hair: worn("facialHair", {
      beard: ["full", "full2", "full3"],
      moustache: ["moustache2", "moustache3", "moustache5", "moustache7"],
    }),
    clothing: coloured("clothingColor", CLOTHING_COLOURS),
  },
  personas: {
    collection: "personas",
    options: {scale: 125, body: ["squared", "rounded", "checkered"]},
    hair: {
      short: {hair: ["shortCombover", "shortComboverChops"]},
      curly: {hair: ["curly", "curlyHighTop"]},
      long: {hair: ["long", "extraLong"]},
      bob: {hair: ["bobCut", "bobBangs"]},
      bun: {hair: ["straightBun", "curlyBun"]},
      pigtails: {hair: ["pigtails"]},
      mohawk: {hair: ["mohawk"]},
      bald: {hair: ["bald"]},
      cap: {hair: ["cap"]},
      beanie: {hair: ["beanie"]},
    },
    hair_colour: coloured("hairColor", HAIR_COLOURS),
    // In this style, faces are a lighter tint of the colour than necks.
    skin: coloured("skinColor", {light: "f0b48c", tan: "b8703c", dark: "5c3218"}),
    mood: {
      smiling: {mouth: ["smile"]},
      laughing: {mouth: ["bigSmile"]},
      frowning: {mouth: ["frown"]},
      surprised: {mouth: ["surprise"]},
    },
    glasses: {none: {eyes: ["open", "happy"]}, glasses: {eyes: ["glasses"]}, sunglasses: {eyes: ["sunglasses"]}},
    facial_hair: worn("facialHair", {beard: ["beardMustache"], moustache: ["pyramid", "walrus"]}),
    clothing: coloured("clothingColor", CLOTHING_COLOURS),
  },
  micah: {
    collection: "micah",
    options: {glassesColor: ["1c1a1e"], earringColor: ["f5c518"], eyebrows: ["up", "eyelashesUp"]},
    hair: {
      short: {hair: ["fonze", "dannyPhantom"]},
      long: {hair: ["full"]},
      bob: {hair: ["pixie"]},
      mohawk: {hair: ["mrT"]},
      bald: {hair: ["mrClean"]},
    },
    hair_colour: coloured("hairColor", HAIR_COLOURS),
    skin: coloured("baseColor", SKINS),
    mood: {
      smiling: {mouth: ["smile"]},
      laughing: {mouth: ["laughing"]},
      frowning: {mouth: ["frown", "sad"]},
      surprised: {mouth: ["surprised"]},
    },
    glasses: worn("glasses", {glasses: ["round", "square"]}),
    facial_hair: worn("facialHair", {beard: ["beard"]}),
    earrings: worn("earrings", {hoops: ["hoop"]}),
    clothing: coloured("shirtColor", CLOTHING_COLOURS),
  },
  adventurer: {
    collection: "adventurer",
    options: {
      scale: 105,
      earringsProbability: 0,
      eyes: variants(1, 2, 3, 9, 23, 24, 26),
      eyebrows: variants(5, 9, 10, 11, 12, 13, 15),
    },
    hair: {
      short: {hair: shortHair(1, 2, 4, 10, 11, 14)},
      curly: {hair: shortHair(3, 17)},
      long: {hair: longHair(4, 5, 6, 7, 9)},
      bob: {hair: longHair(1, 21)},
      bun: {hair: longHair(10, 11)},
      pigtails: {hair: longHair(13, 14, 15, 23)},
      ponytail: {hair: longHair(19)},
      mohawk: {hair: shortHair(15)},
      bald: {hair: shortHair(19)},
    },
    hair_colour: coloured("hairColor", HAIR_COLOURS),
    skin: coloured("skinColor", SKINS),
    mood: {
      smiling: {mouth: variants(2)},
      laughing: {mouth: variants(1, 5, 25, 26, 27)},
      frowning: {mouth: variants(4)},
      surprised: {mouth: variants(3, 15, 18)},
    },
    glasses: worn("glasses", {glasses: variants(2, 4, 5), sunglasses: variants(1)}),
    facial_hair: worn("features", {moustache: ["mustache"]}),
  },
};

// Sampling weights of values; the weight of other values is 1.
export const WEIGHTS = {
  hair: {short: 3, long: 3, curly: 2, bob: 2},
  hair_colour: {black: 2, brown: 2, blond: 2},
  mood: {smiling: 3, laughing: 2, frowning: 2},
  glasses: {none: 5, glasses: 2},
  facial_hair: {none: 8},
  earrings: {none: 2},
};

function numbered(prefix, numbers) {
  return numbers.map((number) => prefix + String(number).padStart(2, "0"));
}

function variants(...numbers) {
  return numbered("variant", numbers);
}

function shortHair(...numbers) {
  return numbered("short", numbers);
}

function longHair(...numbers) {
  return numbered("long", numbers);
}

function coloured(option, colours) {
  return Object.fromEntries(Object.entries(colours).map(([name, hex]) => [name, {[option]: [hex]}]));
}

// Return the values of an attribute that can be absent: "none" and the given ones.
function worn(option, values) {
  const probability = `${option}Probability`;
  const present = Object.entries(values).map(([name, parts]) => [name, {[option]: parts, [probability]: 100}]);
  return {none: {[probability]: 0}, ...Object.fromEntries(present)};
}
