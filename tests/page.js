// The page of an explanation without a browser: just as much of one as its script touches. Prints what it did, as JSON.
"use strict";
const html = require("fs").readFileSync(process.argv[2], "utf8");
const strokes = [], listeners = {};
let loads = 0;
class Element {
  constructor(id = "") { Object.assign(this, { id, children: [], style: {}, attributes: {}, heard: {}, textContent: "", value: "" }); }
  addEventListener(name, call) { (this.heard[name] ??= []).push(call); }
  fire(name, event = {}) { for (const call of this.heard[name] ?? []) call({ target: this, ...event }); }
  click() { this.fire("click"); }
  setAttribute(name, value) { this.attributes[name] = value; }
  append(...more) { this.children.push(...more); }
  replaceChildren(...more) { this.children = more; }
  setPointerCapture() {}
  getBoundingClientRect() { return { left: 0, top: 0, width: this.width, height: this.height }; }
  getContext() {
    const own = this;
    return {
      clearRect() {}, drawImage(image) { own.drawn = image; }, putImageData() {},
      strokeRect(...where) { strokes.push(where); },
      getImageData: (x, y, w, h) => ({ width: w, height: h, data: new Uint8ClampedArray(4 * w * h).fill(255) }),
    };
  }
}
const byId = {}, get = id => (byId[id] ??= new Element(id));
get("data").textContent = html.match(/id="data">(.*?)<\/script>/s)[1];
const body = new Element(), caption = new Element();
globalThis.document = {
  getElementById: get, createElement: () => new Element(),
  querySelector: name => (name === "tbody" ? body : caption),
  querySelectorAll: () => get("words").children,
};
globalThis.Image = class extends Element {
  set src(value) { if (!value.startsWith("data:")) throw new Error("not in the page: " + value); loads += 1; this.source = value; }
  complete = true; naturalWidth = 4; naturalHeight = 4;
};
(0, eval)(html.match(/<script>\n(.*?)<\/script>/s)[1]);
const image = get("image"), words = get("words").children, zoom = Number(process.argv[3]);
const cells = () => body.children.map(row => row.children.map(cell => cell.textContent));
const box = () => ["left", "top", "right", "bottom"].map(name => get(name).value);
const made = { loads, first: { box: box(), stroke: strokes.at(-1), shown: image.drawn.source, cells: cells() } };
words[1].fire("mouseenter"); made.hover = { says: get("said").textContent, aria: image.attributes["aria-label"] };
words[1].fire("mouseleave"); made.left = get("said").textContent;
get("step").value = "0"; get("step").fire("input"); made.step = { level: get("level").textContent, shown: image.drawn.source, cells: cells() };
image.fire("pointerdown", { clientX: 2.5 * zoom, clientY: 9.5 * zoom }); image.fire("pointermove", { clientX: 11.5 * zoom, clientY: 4.5 * zoom }); image.fire("pointerup");
made.dragged = { box: box(), stroke: strokes.at(-1) };
get("right").value = "1"; get("right").fire("change"); made.refused = box();
get("right").value = "999"; get("right").fire("change"); made.clipped = box();
image.fire("dblclick"); made.whole = box();
words[0].click(); made.pinned = words.map(word => word.attributes["aria-pressed"]);
console.log(JSON.stringify(made));
