"use strict";
// Tables sort by a click on the head of a column; utterances can be filtered. Without scripts the page is complete, too.
(function () {
  function key(cell) {
    const text = cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent.trim();
    return { text: text, number: text === "" ? NaN : Number(text) };
  }
  // Numbers before texts, and what is empty at the end in both directions.
  function compare(a, b, sign) {
    const noA = a.text === "" || a.text === "–";
    const noB = b.text === "" || b.text === "–";
    if (noA || noB) return noA - noB;
    const isA = !Number.isNaN(a.number);
    const isB = !Number.isNaN(b.number);
    if (isA && isB) return sign * (a.number - b.number);
    if (isA !== isB) return isA ? -1 : 1;
    return sign * a.text.localeCompare(b.text, "en", { numeric: true });
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      if (head.classList.contains("nosort")) return;
      const button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      button.addEventListener("click", function () {
        const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", direction);
        const sign = direction === "ascending" ? 1 : -1;
        const body = table.tBodies[0];
        Array.from(body.rows)
          .map((row) => ({ row: row, key: key(row.cells[column]) }))
          .sort((a, b) => compare(a.key, b.key, sign))
          .forEach((item) => body.appendChild(item.row));
      });
    });
  }
  for (const input of document.querySelectorAll("input.filter")) {
    const table = document.getElementById(input.dataset.table);
    const count = document.getElementById(input.dataset.count);
    input.hidden = false;
    input.addEventListener("input", function () {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = words.length ? shown + " shown" : "";
    });
  }
  // On paper everything is open.
  let closed = [];
  window.addEventListener("beforeprint", function () {
    closed = Array.from(document.querySelectorAll("details:not([open])"));
    closed.forEach((element) => { element.open = true; });
  });
  window.addEventListener("afterprint", function () {
    closed.forEach((element) => { element.open = false; });
  });
})();
