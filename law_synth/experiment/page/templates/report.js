"use strict";
// Click on a heading sorts its table; a second click turns the order round.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const turn = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", turn);
    const key = (row) => {
      const cell = row.cells[head.cellIndex], text = cell.dataset.value ?? cell.textContent.trim();
      return text === "" ? null : isNaN(text) ? text : Number(text);
    };
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null); // empty cells last, whatever the order
      const order = typeof a === typeof b && typeof a === "number" ? a - b : String(a).localeCompare(String(b));
      return turn === "ascending" ? order : -order;
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  });
}
// Of several labels, tables and charts show one at a time; without this script all of them.
const labels = document.querySelectorAll(".labels button");
const choose = (label) => {
  for (const button of labels) button.setAttribute("aria-pressed", button.value === label);
  for (const part of document.querySelectorAll("[data-label]")) part.hidden = part.dataset.label !== label;
};
for (const button of labels) button.addEventListener("click", () => choose(button.value));
if (labels.length) choose("0");
// The case under the pointer of a scatter plot.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
for (const plot of document.querySelectorAll("svg[data-cases]")) {
  const cases = JSON.parse(document.getElementById(plot.dataset.cases).textContent);
  const points = [...plot.querySelector(".points").getAttribute("d").matchAll(/M(\S+) (\S+)h0/g)];
  const hide = () => { tip.hidden = true; };
  plot.addEventListener("pointerleave", hide);
  const show = (event) => {
    const box = plot.getBoundingClientRect(), scale = box.width / 100;
    const away = points.map(([, x, y]) =>
      Math.hypot(box.left + x * scale - event.clientX, box.top + y * scale - event.clientY));
    const nearest = away.indexOf(Math.min(...away));
    if (away[nearest] > 16) return hide();
    const [, x, y] = points[nearest];
    tip.textContent = `${cases[nearest]}: ${plot.dataset.reference} ${Number(x).toFixed(1)}, ` +
      `${plot.dataset.arm} ${(100 - y).toFixed(1)}`;
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
}
