/** Building elements; text never becomes markup. */

/** An element with properties, attributes (in `attributes`), a style and children (nodes or text). */
export function element(tag, { attributes = {}, style = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const [name, value] of Object.entries(style)) made.style.setProperty(name, value);
  made.append(...children.flat());
  return made;
}

/** An SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

/** A table with a caption, column headings and rows, whose first cells are row headings. */
export function table(caption, columns, rows) {
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, columns.map((text) => element("th", { scope: "col" }, text)))),
    element(
      "tbody",
      {},
      rows.map(([first, ...cells]) =>
        element("tr", {}, element("th", { scope: "row" }, first), cells.map((cell) => element("td", {}, cell))),
      ),
    ),
  );
}

/** A character as it can be seen: invisible ones get a sign, the end of an item too, and marks a base. */
export const visible = (character) =>
  ({ "": "■", " ": "␣", "\n": "↵", "\t": "⇥" })[character] ??
  (/^\p{M}$/u.test(character) ? `◌${character}` : undefined) ??
  (/^[\p{C}\p{Z}]$/u.test(character) ? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}` : character);

export const percent = (share) =>
  share >= 0.9995 ? "100 %" : share >= 0.1 ? `${(100 * share).toFixed(0)} %` : `${(100 * share).toPrecision(share < 0.0001 ? 1 : 2)} %`;

/** The state of the page, kept in the URL's fragment, so that a link or a reload shows the same. */
export const state = {
  read() {
    return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  },
  write(values) {
    const all = new URLSearchParams({ ...this.read(), ...values });
    for (const [name, value] of [...all]) if (value === "") all.delete(name);
    try {
      history.replaceState(null, "", `#${all}`);
    } catch {
      // Some browsers refuse it in a frame, or often in a short time; then only the address stays as it was.
    }
  },
};
