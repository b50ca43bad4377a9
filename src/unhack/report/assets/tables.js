// Sorting tables by their headings, and bringing out one arm in every figure.

const sortKey = (row, column) => {
  const text = row.cells[column].dataset.sort;
  const number = Number(text);
  return text === "" ? null : Number.isNaN(number) ? text : number;
};

const compareKeys = (left, right) => {
  if (typeof left === "number" && typeof right === "number") return left - right;
  return String(left).localeCompare(String(right));
};

// Rows without a value stay last in both directions.
const sortTable = (table, column, descending) => {
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((one, two) => {
    const left = sortKey(one, column);
    const right = sortKey(two, column);
    if (left === null || right === null) return (left === null) - (right === null);
    return descending ? compareKeys(right, left) : compareKeys(left, right);
  });
  body.append(...rows);
  for (const [index, heading] of [...table.tHead.rows[0].cells].entries()) {
    if (index === column) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else heading.removeAttribute("aria-sort");
  }
};

for (const table of document.querySelectorAll("table.sortable")) {
  for (const [column, heading] of [...table.tHead.rows[0].cells].entries()) {
    heading.querySelector("button").addEventListener("click", () => {
      sortTable(table, column, heading.getAttribute("aria-sort") === "ascending");
    });
  }
}

const highlight = document.getElementById("highlight");
highlight.addEventListener("change", () => {
  for (const element of document.querySelectorAll("[data-arm]")) {
    const own = element.dataset.arm;
    element.classList.toggle("dim", highlight.value !== "" && own !== "" && own !== highlight.value);
  }
});
