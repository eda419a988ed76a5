// Leaderboards: sort by any column, filter rows and metrics. Without this script the tables stand in their first order.

function startBoards() {
  for (const section of all("section[data-board]")) {
    const tools = section.querySelector(".tools");
    tools.hidden = false;
    all("table.board", section).forEach(keepFirstOrder);
    fillSortMenu(section, tools);
    tools.addEventListener("input", () => applyBoard(section));
    all("button.sort", section).forEach(button => {
      button.disabled = false;
      button.addEventListener("click", () => sortByButton(section, button));
    });
  }
}

function keepFirstOrder(table) {
  all("tbody tr", table).forEach((row, index) => { row.dataset.first = index; });
}

function fillSortMenu(section, tools) {
  const menu = tools.querySelector("select.sorting");
  const seen = new Set();
  for (const button of all("button.sort", section)) {
    if (seen.has(button.dataset.column)) continue;
    seen.add(button.dataset.column);
    addOption(menu, `${button.dataset.column}|best`, `${button.dataset.title}, ${button.dataset.best}`);
    addOption(menu, `${button.dataset.column}|worst`, `${button.dataset.title}, ${button.dataset.worst}`);
  }
}

// A click sorts with the best first, a second one turns the order round, a third brings the first order back.
function sortByButton(section, button) {
  const menu = section.querySelector("select.sorting");
  const column = button.dataset.column;
  const next = { "": `${column}|best`, [`${column}|best`]: `${column}|worst`, [`${column}|worst`]: "" };
  menu.value = next[menu.value] === undefined ? `${column}|best` : next[menu.value];
  applyBoard(section);
}

function applyBoard(section) {
  const tools = section.querySelector(".tools");
  const chosen = tools.querySelector("select.sorting").value;
  const cut = chosen.lastIndexOf("|");  // the name of a column may hold one, too
  const [column, end] = [chosen.slice(0, Math.max(cut, 0)), chosen.slice(cut + 1)];
  const shown = all("table.board", section).map(table => {
    sortTable(table, column, end);
    return filterRows(table, tools);
  });
  filterMetrics(section, tools.querySelector("input.metrics").value.trim().toLowerCase());
  filterMarks(section, tools);
  sayShown(tools, shown[0]);
}

function sortTable(table, column, end) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows).sort((a, b) => a.dataset.first - b.dataset.first);
  const button = all("button.sort", table).find(b => b.dataset.column === column);
  if (button) rows.sort(comparing(button, end));
  body.append(...rows);
  for (const b of all("button.sort", table)) markSorted(b, b === button ? end : "");
}

// Rows without a number stay at the end whichever way the others go; equal numbers keep their first order.
function comparing(button, end) {
  const place = Number(button.dataset.place);
  const turn = (button.dataset.higher === "false" ? 1 : -1) * (end === "worst" ? -1 : 1);
  return (a, b) => {
    const [x, y] = [numberOf(a, place), numberOf(b, place)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return turn * (x - y);
  };
}

function numberOf(row, place) {
  const text = row.cells[place].dataset.value;
  return text === undefined ? NaN : Number(text);
}

function markSorted(button, end) {
  const rising = (button.dataset.higher === "false") === (end === "best");
  const head = button.closest("th");
  if (end) head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  else head.removeAttribute("aria-sort");
}

function filterRows(table, tools) {
  const kept = name => keepsRow(name, tools);
  const rows = Array.from(table.tBodies[0].rows);
  rows.forEach(row => { row.hidden = !kept(row); });
  return [rows.filter(row => !row.hidden).length, rows.length];
}

function keepsRow(row, tools) {
  const query = tools.querySelector("input.rows").value.trim().toLowerCase();
  const choice = tools.querySelector("select.choice").value;
  if (!has(row.dataset.name, query)) return false;
  if (choice === "models") return row.dataset.reference !== "true";
  if (choice === "first") return row.dataset.leads === "true";
  return true;
}

function filterMetrics(section, query) {
  for (const table of all("table.board", section)) {
    for (const button of all("button.sort", table)) {
      const hide = !has(button.dataset.search, query);
      for (const row of table.rows) row.cells[Number(button.dataset.place)].hidden = hide;
    }
  }
  for (const figure of all("figure[data-search]", section)) figure.hidden = !has(figure.dataset.search, query);
}

function filterMarks(section, tools) {
  const query = tools.querySelector("input.rows").value.trim().toLowerCase();
  for (const mark of all(".marks li", section)) mark.hidden = !has(mark.dataset.name, query);
}

function sayShown(tools, [shown, total]) {
  tools.querySelector(".shown").textContent = shown === total ? "" : `${shown} of ${total} rows`;
}
