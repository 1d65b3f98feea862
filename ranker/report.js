// Sorts and filters the tables, folds what is secondary. The page is whole without it: every row is there, unfolded.
(() => {
  "use strict";

  const collator = new Intl.Collator("en", { numeric: true });
  const announcer = document.createElement("p");
  announcer.setAttribute("role", "status");
  announcer.className = "spoken";
  document.body.append(announcer);

  const textOf = (row, column) => row.cells[column].textContent.trim();
  const valueOf = (row, column) => (row.cells[column].dataset.v === undefined ? null : Number(row.cells[column].dataset.v));

  // A value that is missing comes last in either direction.
  const compare = (a, b, column, isText, sign) => {
    if (isText) return sign * collator.compare(textOf(a, column), textOf(b, column));
    const [left, right] = [valueOf(a, column), valueOf(b, column)];
    if (left === null || right === null) return (left === null) - (right === null);
    return sign * (left - right);
  };

  // What is said once for several rows is said on the first of those that stand together now.
  const markRepeats = (table) => {
    let before = null;
    for (const row of table.tBodies[0].rows) {
      if (row.hidden) continue;
      const said = [...row.querySelectorAll(".once")].map((cell) => cell.textContent).join("\n");
      row.classList.toggle("repeat", said !== "" && said === before);
      before = said;
    }
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const inOrder = [...body.rows];
    const heads = [...table.tHead.querySelectorAll("th[data-column]")];
    const sort = (head) => {
      const isText = head.classList.contains("text");
      const cycle = isText ? ["ascending", "descending", null] : ["descending", "ascending", null];
      const next = cycle[(cycle.indexOf(head.getAttribute("aria-sort")) + 1) % cycle.length];
      for (const other of heads) other.removeAttribute("aria-sort");
      if (next) head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const column = Number(head.dataset.column);
      body.append(...(next ? [...inOrder].sort((a, b) => compare(a, b, column, isText, sign)) : inOrder));
      markRepeats(table);
      announcer.textContent = next ? `Sorted by ${head.textContent}, ${next}.` : "In the first order again.";
    };
    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(head));
      head.append(button);
    }
  };

  const filterable = (tools, table) => {
    const rows = [...table.tBodies[0].rows];
    const selects = [...tools.querySelectorAll("select")];
    const filter = () => {
      for (const row of rows) {
        row.hidden = selects.some(({ value, dataset }) => {
          const has = row.dataset[dataset.filter];
          return value !== "" && !(dataset.filter === "kind" ? value.split(" ").includes(has) : value === has);
        });
      }
      const shown = rows.filter((row) => !row.hidden).length;
      tools.querySelector("p").textContent = shown < rows.length ? `${shown} of ${rows.length} rows` : `${shown} rows`;
      markRepeats(table);
    };
    for (const select of selects) select.addEventListener("change", filter);
    tools.hidden = false;
    filter();
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    sortable(table);
    const tools = table.parentElement.previousElementSibling;
    if (tools?.classList.contains("tools")) filterable(tools, table);
  }

  const folds = [...document.querySelectorAll("details.fold")];
  for (const fold of folds) fold.open = false;
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
})();
