"use strict";
// Sorting and filtering of tables; without script they are shown whole, in their own order.
(() => {
  const key = (row, column, kind) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    if (kind === "text") return text.toLowerCase();
    const value = parseFloat(text);
    return text === "" || Number.isNaN(value) ? Infinity : value;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.dataset.kind) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...body.rows].map((row) => [key(row, column, head.dataset.kind), row]);
        rows.sort(([a], [b]) => {
          if (a === b) return 0;
          if (a === Infinity || b === Infinity) return a === Infinity ? 1 : -1; // no value: always last
          return (a < b ? -1 : 1) * (up ? 1 : -1);
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }
  const tools = document.querySelector(".tools");
  if (tools) {
    tools.hidden = false;
    const rows = [...document.querySelector("#ranked").tBodies[0].rows];
    const filter = document.querySelector("#filter");
    const first = document.querySelector("#first");
    const hits = document.querySelector("#hits");
    const shown = document.querySelector("#shown");
    const best = Math.min(...rows.map((row) => Number(row.dataset.rank)));
    const update = () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let visible = 0;
      for (const row of rows) {
        const text = row.dataset.text.toLowerCase();
        const keep = words.every((word) => text.includes(word))
          && (!first.checked || Number(row.dataset.rank) === best)
          && (!hits?.checked || row.classList.contains("hit"));
        row.hidden = !keep;
        visible += keep;
      }
      shown.textContent = visible === rows.length ? `${rows.length} rows` : `${visible} of ${rows.length} rows`;
    };
    for (const control of [filter, first, hits]) control?.addEventListener("input", update);
    update();
  }
  // Folded parts are printed open.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const part of opened) part.open = true;
  });
  addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));
})();
