// Paired differences: another baseline brings another table, all of which Python has computed and put into texts.

function startDifferences() {
  for (const part of all("[data-differences]")) {
    const tables = readData(part.dataset.differences);
    const select = part.querySelector("select");
    for (const name of Object.keys(tables)) addOption(select, name, name);
    select.value = part.dataset.chosen;
    part.querySelector("label").hidden = false;
    select.addEventListener("change", () => showDifferences(part, tables[select.value], select.value));
  }
}

function showDifferences(part, rows, name) {
  part.querySelector("tbody").replaceChildren(...rows.map(differenceRow));
  part.querySelector(".baseline").textContent = name;
}

function differenceRow([name, metric, difference, interval, n, p, holm, test, verdict]) {
  const row = make("tr");
  const head = make("th", "", name);
  head.scope = "row";
  const change = make("td", "num nowrap", difference);
  change.append(make("span", "small nowrap", interval));
  row.append(head, make("td", "", metric), change, make("td", "num", n), make("td", "num nowrap", p),
    make("td", "num nowrap", holm), make("td", `verdict ${verdict.split(" ")[0]}`, verdict), make("td", "long", test));
  return row;
}
