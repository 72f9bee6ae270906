"use strict";
// Search and sort of the items; without this script they stand in their first order, all of them.
const asNumber = (text) => (text.trim() === "" ? NaN : Number(text.replace(/^[$€£]/, "").replaceAll(",", "")));
const inOrder = (one, other) => {
  const a = asNumber(one), b = asNumber(other);
  if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
  return one.localeCompare(other, undefined, { numeric: true });
};
for (const box of document.querySelectorAll("[data-items]")) {
  const body = box.querySelector("tbody"), rows = [...body.rows], status = box.querySelector("[data-status]");
  const search = box.querySelector("[data-search]"), only = box.querySelector("[data-disagree]");
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = (only.checked && !("differs" in row.dataset)) || !words.every((word) => texts.get(row).includes(word));
      shown += !row.hidden;
    }
    status.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
  };
  search.addEventListener("input", filter);
  only.addEventListener("change", filter);
  box.querySelectorAll("thead button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.parentElement, up = head.getAttribute("aria-sort") !== "ascending";
    box.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.sort((a, b) => (up ? 1 : -1) * inOrder(value(a, column), value(b, column)));
    body.append(...rows);
  }));
  box.querySelector("[data-controls]").hidden = false;
}
