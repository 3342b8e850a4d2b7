/** From text to ids and back, for one model. */

export class Alphabet {
  /** @param {string[]} characters id 1 and up for items, 0 and up for a long text */
  constructor(characters, isText) {
    this.first = isText ? 0 : 1;
    this.characters = characters;
    this.ids = new Map(characters.map((character, place) => [character, place + this.first]));
  }

  /** The character of an id; empty for the end of an item. */
  at(id) {
    return this.characters[id - this.first] ?? "";
  }

  decode(ids) {
    return ids.map((id) => this.at(id)).join("");
  }

  /** What a long text without a prefix begins with: a line ending, or else its first character. */
  get begin() {
    return [Math.max(this.characters.indexOf("\n"), 0)];
  }

  /** Ids of text in the form of the data (Unicode's NFC); characters that the model never saw are left out. */
  encode(text) {
    const ids = [], unknown = [];
    for (const character of text.normalize("NFC")) {
      if (this.ids.has(character)) ids.push(this.ids.get(character));
      else if (!unknown.includes(character)) unknown.push(character);
    }
    return { ids, unknown };
  }
}
