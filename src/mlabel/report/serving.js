"use strict";
// Texts from the server are shown as text only; styles are set by property, which the page's policy allows.
const SHOWN = 40; // labels of a group, before "show all"
const SMALL = 320; // pixels
const find = (id) => document.getElementById(id);
let about = null; // what GET /labels said
let file = null; // what was chosen
let answer = null; // what POST /predict said of it
let turn = 0; // which choice of an image, and of a label, is the newest
let pick = 0;
let picked = null; // the label whose map is shown
const open = new Set(); // groups of which all labels are shown

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(address, body) {
  let response;
  try {
    response = await fetch(address, body ? { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } } : {});
  } catch {
    throw new Error("The server does not answer; is it still running?");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error || `The server answered ${response.status}.`);
  return content;
}

function clearMap() {
  pick += 1;
  picked = null;
  find("map").hidden = find("plain").hidden = true;
  find("map").removeAttribute("src");
  find("caption").textContent = "";
  document.querySelectorAll(".row").forEach((row) => row.setAttribute("aria-pressed", "false"));
}

async function choose(chosen) {
  if (!chosen) return;
  const mine = ++turn;
  file = chosen;
  answer = null;
  clearMap();
  find("error").textContent = "";
  find("labels").hidden = find("figure").hidden = true;
  if (about && file.size > about.max_bytes) {
    find("error").textContent = `The file has ${file.size.toLocaleString()} bytes; at most ${about.max_bytes.toLocaleString()} are taken.`;
    return;
  }
  find("status").textContent = "Looking at it …";
  try {
    const said = await ask("/predict", file);
    if (mine !== turn) return;
    answer = said;
    const image = find("image");
    if (image.src) URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(file);
    find("figure").hidden = find("labels").hidden = false;
    const count = Object.keys(answer.labels).length;
    find("status").textContent = count === 1 ? "1 label holds." : `${count} labels hold.`;
    show();
  } catch (error) {
    if (mine !== turn) return;
    find("status").textContent = "";
    find("error").textContent = error.message;
  }
}

function rowOf(name, threshold) {
  const holds = name in answer.labels;
  const score = answer.scores[name];
  const row = element("button", holds ? "row holds" : "row");
  row.type = "button";
  row.setAttribute("aria-pressed", String(name === picked));
  const limit = threshold === null ? "" : `, threshold ${threshold.toFixed(2)}`;
  row.setAttribute("aria-label", `${name}: score ${score.toFixed(2)}${limit}, ${holds ? "holds" : "does not hold"}`);
  row.title = `score ${score.toFixed(4)}${limit}`;
  const bar = element("span", "bar");
  const fill = element("span", "fill");
  fill.style.width = `${100 * score}%`;
  bar.append(fill);
  if (threshold !== null && threshold >= 0 && threshold <= 1) {
    const mark = element("span", "mark");
    mark.style.left = `calc(${100 * threshold}% - 1px)`;
    bar.append(mark);
  }
  const title = element("span", "name");
  // Long tags may break after an underscore.
  name.split("_").forEach((part, place) => title.append(...(place ? ["_", element("wbr"), part] : [part])));
  row.append(element("span", "tick", holds ? "✓" : ""), title, bar, element("span", "score", score.toFixed(2)));
  row.addEventListener("click", () => look(name, row));
  return row;
}

function show() {
  const query = find("query").value.trim().toLowerCase();
  const groups = find("groups");
  groups.replaceChildren();
  for (const group of about.groups) {
    const held = group.labels.filter((label) => label.name.toLowerCase().includes(query));
    if (!held.length) continue;
    held.sort((a, b) => (b.name in answer.labels) - (a.name in answer.labels) || answer.scores[b.name] - answer.scores[a.name]);
    const section = element("section");
    section.append(element("h2", "", group.exclusive ? `${group.name} (one of)` : group.name));
    const list = element("ul");
    const holding = held.filter((label) => label.name in answer.labels).length;
    const count = open.has(group.name) ? held.length : Math.max(SHOWN, holding);
    for (const label of held.slice(0, count)) {
      const item = element("li");
      item.append(rowOf(label.name, label.threshold));
      list.append(item);
    }
    section.append(list);
    if (count < held.length) {
      const more = element("button", "more", `Show all ${held.length.toLocaleString()}`);
      more.type = "button";
      more.addEventListener("click", () => { open.add(group.name); show(); });
      section.append(more);
    }
    groups.append(section);
  }
  if (!groups.children.length) groups.append(element("p", "soft", "No label has this in its name."));
}

async function look(name, row) {
  if (name === picked) { clearMap(); return; }
  clearMap();
  const mine = pick;
  picked = name;
  row.setAttribute("aria-pressed", "true");
  find("caption").textContent = `Where did the model look for ${name}? …`;
  try {
    const said = await ask(`/explain?label=${encodeURIComponent(name)}`, file);
    if (mine !== pick) return;
    find("figure").scrollIntoView({ block: "nearest" }); // on a narrow screen it may be far above the label
    if (said.empty) {
      find("caption").textContent = `${name}: nothing in the image speaks for it.`;
      return;
    }
    find("map").src = said.map;
    find("map").hidden = find("plain").hidden = false;
    find("caption").textContent = said.method === "grad_cam"
      ? `Lit: what speaks for ${name} (Grad-CAM)`
      : "Lit: where the model looked, for all labels alike (attention rollout)";
  } catch (error) {
    if (mine === pick) find("caption").textContent = error.message;
  }
}

function begin() {
  const drop = find("drop");
  find("file").addEventListener("change", (event) => choose(event.target.files[0]));
  find("plain").addEventListener("click", clearMap);
  find("query").addEventListener("input", show);
  find("image").addEventListener("load", (event) => {
    const image = event.target;
    const side = Math.max(image.naturalWidth, image.naturalHeight);
    // Small images are enlarged, so that a map on them can be seen.
    image.style.width = side < SMALL ? `${(image.naturalWidth * SMALL) / side}px` : "";
  });
  find("image").addEventListener("error", () => { find("status").textContent += " The browser cannot show this format."; });
  // Anywhere on the page, so that a near miss does not make the browser leave it.
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    choose(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const pasted = [...event.clipboardData.files][0];
    if (pasted) choose(pasted);
  });
  ask("/labels").then((said) => {
    about = said;
    document.title = find("title").textContent = said.title;
    const number = said.groups.reduce((sum, group) => sum + group.labels.length, 0);
    find("search").hidden = number <= SHOWN;
    if (said.rule) find("legend").textContent = `The bar is the score; what holds is ticked, by the rule ${said.rule}. Pick a label to see where the model looked.`;
    document.body.dataset.ready = "yes";
  }).catch((error) => { find("error").textContent = error.message; });
}

begin();
