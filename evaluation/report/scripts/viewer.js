// The sample viewer: one page of the list at a time, so that ten thousand samples cost no more than twenty-five.
// An item is [prompt, category number, reference, [[label, text], ...], [[text, score, wrong, figures] or 0, ...]].

const PER_PAGE = 25;

const viewer = { sets: [], set: null, found: [], page: 0, open: -1 };

function startViewer() {
  const data = readData("sample-data");
  if (!data || !data.sets.length) return;
  viewer.sets = data.sets;
  byId("viewer").hidden = false;
  data.sets.forEach((set, index) => addOption(byId("viewer-set"), index, `${set.title} (${set.items.length})`));
  byId("viewer-set").addEventListener("input", event => { event.stopPropagation(); chooseSet(); });
  byId("viewer-tools").addEventListener("input", search);
  byId("viewer-back").addEventListener("click", () => turnPage(-1));
  byId("viewer-on").addEventListener("click", () => turnPage(1));
  byId("viewer-list").addEventListener("keydown", moveInList);
  byId("viewer-previous").addEventListener("click", () => step(-1));
  byId("viewer-next").addEventListener("click", () => step(1));
  chooseSet();
}

function chooseSet() {
  viewer.set = viewer.sets[Number(byId("viewer-set").value)];
  const { models, categories, wrong, score, items } = viewer.set;
  for (const [id, first] of [["viewer-a", 0], ["viewer-b", 1]]) refill(byId(id), models.map((name, i) => [i, name]), first);
  addOption(byId("viewer-b"), -1, "nobody");
  if (models.length < 2) byId("viewer-b").value = "-1";
  refill(byId("viewer-category"), [[-1, "all"], ...categories.map((name, i) => [i, name || "none"])], 0);
  byId("viewer-category").parentElement.hidden = categories.length < 2;
  const judged = wrong ? models.filter((_, model) => items.some(item => wrongOf(item, model) !== null)) : [];
  byId("viewer-only").parentElement.hidden = !judged.length;
  byId("viewer-only").value = "all";
  byId("viewer-order").parentElement.hidden = !score;
  byId("viewer-order").value = "given";
  byId("viewer-wrong").textContent = judged.length ? `Wrong means here: ${wrong}. Known of ${judged.join(", ")}.` : "";
  search();
}

function refill(select, options, chosen) {
  select.replaceChildren();
  for (const [value, text] of options) addOption(select, value, text);
  select.selectedIndex = Math.min(chosen, options.length - 1);
}

function choices() {
  const value = id => byId(id).value;
  return { a: Number(value("viewer-a")), b: Number(value("viewer-b")), only: value("viewer-only"),
    category: Number(value("viewer-category")), order: value("viewer-order"), text: value("viewer-text").trim().toLowerCase() };
}

function search() {
  const chosen = choices();
  viewer.found = viewer.set.items.filter(item => matches(item, chosen));
  orderItems(viewer.found, chosen);
  viewer.page = 0;
  viewer.open = viewer.found.length ? 0 : -1;
  showList();
  showSample();
}

function matches(item, chosen) {
  if (chosen.category >= 0 && item[1] !== chosen.category) return false;
  const [a, b] = [wrongOf(item, chosen.a), wrongOf(item, chosen.b)];
  if (chosen.only === "wrong" && a !== 1) return false;
  if (chosen.only === "right" && a !== 0) return false;
  if (chosen.only === "both" && !(a === 1 && b === 1)) return false;
  if (chosen.only === "disagree" && (a === null || b === null || a === b)) return false;
  return !chosen.text || textsOf(item).some(text => has(text, chosen.text));
}

function wrongOf(item, model) { return model >= 0 && item[4][model] ? item[4][model][2] : null; }

function scoreOf(item, model) { return model >= 0 && item[4][model] ? item[4][model][1] : null; }

function textsOf(item) {
  return [item[0], item[2], ...item[3].map(part => part[1]), ...item[4].filter(Boolean).map(said => said[0])];
}

function orderItems(items, { a, b, order }) {
  const keys = { low: item => scoreOf(item, a), high: item => negative(scoreOf(item, a)), gap: item => negative(gap(item, a, b)) };
  const key = keys[order];
  if (key) items.sort((x, y) => byNumber(key(x), key(y)));
}

function negative(value) { return value === null ? null : -value; }

function gap(item, a, b) {
  const [x, y] = [scoreOf(item, a), scoreOf(item, b)];
  return x === null || y === null ? null : Math.abs(x - y);
}

function byNumber(x, y) {
  if (x === null || y === null) return (x === null) - (y === null);
  return x - y;
}

// ------------------------------------------------------------------------------------------- the list

function pages() { return Math.max(1, Math.ceil(viewer.found.length / PER_PAGE)); }

function showList() {
  const start = viewer.page * PER_PAGE;
  const part = viewer.found.slice(start, start + PER_PAGE);
  byId("viewer-list").replaceChildren(...part.map((item, index) => listEntry(item, start + index)));
  byId("viewer-count").textContent = `${count(viewer.found.length, "samples")}, page ${viewer.page + 1} of ${pages()}`;
  byId("viewer-back").disabled = viewer.page === 0;
  byId("viewer-on").disabled = viewer.page >= pages() - 1;
}

function listEntry(item, index) {
  const { a, b } = choices();
  const button = make("button", "entry");
  button.type = "button";
  button.dataset.index = index;
  button.setAttribute("aria-current", String(index === viewer.open));
  button.append(make("span", "marks-of", markOf(wrongOf(item, a)) + markOf(wrongOf(item, b))), make("bdi", "start", oneLine(item[0])));
  button.addEventListener("click", () => openSample(index));
  const entry = make("li");
  entry.append(button);
  return entry;
}

function markOf(wrong) { return wrong === null ? "" : wrong ? "✗" : "✓"; }

function oneLine(text) { return text.slice(0, 300).split(/\s+/).join(" ").slice(0, 160); }

function turnPage(by) {
  viewer.page = Math.min(pages() - 1, Math.max(0, viewer.page + by));
  viewer.open = viewer.page * PER_PAGE;
  showList();
  showSample();
}

function openSample(index) {
  viewer.open = index;
  for (const button of all("button.entry", byId("viewer-list"))) {
    button.setAttribute("aria-current", String(Number(button.dataset.index) === index));
  }
  showSample();
}

function step(by) {
  const index = viewer.open + by;
  if (index < 0 || index >= viewer.found.length) return;
  const page = Math.floor(index / PER_PAGE);
  if (page !== viewer.page) { viewer.page = page; viewer.open = index; showList(); }
  openSample(index);
}

function moveInList(event) {
  const by = { ArrowDown: 1, ArrowUp: -1, PageDown: PER_PAGE, PageUp: -PER_PAGE }[event.key];
  if (!by) return;
  event.preventDefault();
  step(by);
  const button = byId("viewer-list").querySelector('[aria-current="true"]');
  if (button) button.focus();
}

// ------------------------------------------------------------------------------------------- one sample

function showSample() {
  const item = viewer.found[viewer.open];
  byId("viewer-sample").hidden = !item;
  if (!item) return;
  const { a, b } = choices();
  const category = viewer.set.categories[item[1]];
  byId("viewer-place").textContent = `Sample ${(viewer.open + 1).toLocaleString("en")} of ${count(viewer.found.length, "")}${category ? `· ${category}` : ""}`;
  byId("viewer-prompt").textContent = item[0];
  const cards = item[3].map(([label, text]) => card(label, "", text, null));
  for (const model of [a, b]) if (model >= 0) cards.push(answerCard(viewer.set.models[model], item[4][model]));
  if (item[2]) cards.push(card("reference", "", item[2], null));
  byId("viewer-answers").replaceChildren(...cards);
  byId("viewer-previous").disabled = viewer.open <= 0;
  byId("viewer-next").disabled = viewer.open >= viewer.found.length - 1;
}

function answerCard(model, said) {
  return said ? card(model, said[3], said[0], said[2]) : card(model, "not measured on this item", "", null);
}

function card(title, figures, text, wrong) {
  const article = make("article", "answer");
  const head = make("header");
  const name = make("b", "", title);
  if (wrong !== null) name.append(make("span", wrong ? "mark bad" : "mark good", wrong ? " ✗ wrong" : " ✓ right"));
  head.append(name, make("span", "", figures));
  article.append(head);
  if (text) {
    const said = make("p", "said", text);
    said.dir = "auto";
    said.tabIndex = 0;
    article.append(said);
  }
  return article;
}
