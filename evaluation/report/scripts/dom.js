// Small helpers. All text goes in through textContent, so that nothing a model wrote can become markup.

function byId(id) { return document.getElementById(id); }

function all(selector, root) { return Array.from((root || document).querySelectorAll(selector)); }

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function readData(id) {
  const element = byId(id);
  return element ? JSON.parse(element.textContent) : null;
}

function addOption(select, value, text) {
  const option = make("option", "", text);
  option.value = String(value);
  select.append(option);
}

function has(text, query) { return text.toLowerCase().includes(query); }

function count(number, what) { return `${number.toLocaleString("en")} ${what}`; }
