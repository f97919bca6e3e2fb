// The page: cohorts, cases, the viewer's state, confusion matrices. Whatever goes wrong is said in words.
const $ = (id) => document.getElementById(id);
const STEP = 12;
const now = { cohort: null, offset: 0, total: 0, case: null };

async function ask(path, how = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...how });
  } catch {
    throw new Error("The server does not answer. Is it running, and is this machine online?");
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const said = await response.json().catch(() => ({}));
  throw Object.assign(new Error(said.detail || `The server answered ${response.status} and gave no reason.`), { status: response.status });
}

function tell(error) {
  $("problem").textContent = error ? error.message[0].toUpperCase() + error.message.slice(1) : "";
  $("problem").hidden = !error;
}

async function trying(what) {
  try { await what(); tell(null); }
  catch (error) {
    if (error.status === 401) showDoor();
    tell(error);
  }
}

function showDoor() {
  $("room").hidden = $("cohort-label").hidden = $("leave").hidden = true;
  $("enter").hidden = false;
  $("token").focus();
}

async function begin() {
  const cohorts = await ask("/v1/cohorts");
  $("enter").hidden = true;
  $("room").hidden = $("leave").hidden = false;
  $("cohort-label").hidden = cohorts.length < 2;
  $("cohort").replaceChildren(...cohorts.map((c) => new Option(`${c.title} (${c.cases})`, c.name)));
  if (!cohorts.length) throw new Error("This server was started without a cohort: python jobs/serve.py --cohort URL shows one.");
  const [, wanted, name] = decodeURIComponent(location.hash).match(/^#([^/]+)\/(.+)$/) || [];
  now.cohort = cohorts.some((c) => c.name === wanted) ? wanted : cohorts[0].name;
  $("cohort").value = now.cohort;
  await listCases(0);
  await open(name && now.cohort === wanted ? name : now.first);
  await showConfusions();
}

async function listCases(offset) {
  const found = await ask(`/v1/cohorts/${encodeURIComponent(now.cohort)}/cases?offset=${offset}&limit=${STEP}`);
  Object.assign(now, { offset, total: found.total, first: found.cases[0]?.case });
  $("cases").replaceChildren(...found.cases.map(entry));
  $("where").textContent = `${offset + 1}–${offset + found.cases.length} of ${found.total}`;
  $("back").disabled = offset === 0;
  $("on").disabled = offset + STEP >= found.total;
}

function entry(row) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.case = row.case;
  const image = new Image();
  image.src = `/v1/cohorts/${encodeURIComponent(now.cohort)}/cases/${encodeURIComponent(row.case)}/thumbnail.png`;
  image.alt = "";
  image.loading = "lazy";
  const words = document.createElement("span");
  const agreement = row.agreement === null ? "one annotator" : `agreement ${row.agreement.toFixed(2)} Dice`;
  words.append(row.case, small(agreement), small(`${row.shape.join(" × ")} px, ${row.annotators.length} drew, ${row.split}`));
  button.append(image, words);
  button.addEventListener("click", () => trying(() => open(row.case)));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function small(text) {
  const element = document.createElement("small");
  element.textContent = text;
  return element;
}

async function open(name) {
  if (!name) throw new Error("This cohort has no case.");
  const panels = document.querySelector("input[name=panels]:checked").value;
  const place = `${encodeURIComponent(now.cohort)}/${encodeURIComponent(name)}`;
  const { state } = await ask(`/page/view/${place}?panels=${panels}`);
  now.case = name;
  $("case-title").textContent = name;
  for (const button of $("cases").querySelectorAll("button")) button.setAttribute("aria-current", String(button.dataset.case === name));
  history.replaceState(null, "", `#${now.cohort}/${name}`);
  const address = JSON.stringify(state).replaceAll("{origin}", location.origin);
  const frame = $("viewer").cloneNode(); // a new frame: the client reads its address once
  frame.src = `/viewer/v/local/#!${encodeURIComponent(address)}`;
  $("viewer").replaceWith(frame);
}

async function showConfusions() {
  const counted = await ask(`/v1/cohorts/${encodeURIComponent(now.cohort)}/confusions`);
  const models = await ask("/v1/models");
  const learnt = models.filter((m) => m.confusions && m.annotators.some((a) => counted.annotators.includes(a)));
  $("confusions-about").textContent =
    `Rows: what the annotator wrote. Columns: what ${counted.against} says, over ${counted.cases} cases` +
    (learnt.length ? `; below, what ${learnt.map((m) => m.name).join(", ")} believes.` : ".");
  const tables = counted.annotators.map((who, a) => matrix(who, counted.classes, counted.matrices[a]));
  for (const model of learnt)
    tables.push(...model.annotators.map((who, a) => matrix(`${who}, as ${model.name} sees it`, model.classes, model.confusions[a])));
  $("confusions").replaceChildren(...tables);
}

function matrix(title, classes, rows) {
  const table = document.createElement("table");
  table.createCaption().textContent = title;
  const head = table.insertRow();
  head.append(cell("th", "wrote \\ is"), ...classes.map((c) => cell("th", c)));
  rows.forEach((row, i) => {
    const line = table.insertRow();
    line.append(cell("th", classes[i]), ...row.map((p) => cell("td", p === null ? "–" : p.toFixed(2), p)));
  });
  const holder = document.createElement("div");
  holder.className = "scroll";
  holder.append(table);
  return holder;
}

function cell(kind, text, share) {
  const element = document.createElement(kind);
  element.textContent = text;
  if (share) element.style.setProperty("--share", share);
  return element;
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(async () => {
    const token = $("token").value.trim();
    await ask("/session", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token }) });
    $("token").value = "";
    await begin();
  });
});
$("leave").addEventListener("click", () => trying(async () => { await ask("/session/end", { method: "POST" }); showDoor(); }));
$("cohort").addEventListener("change", () => trying(async () => { now.cohort = $("cohort").value; await listCases(0); await open(now.first); await showConfusions(); }));
$("back").addEventListener("click", () => trying(() => listCases(Math.max(0, now.offset - STEP))));
$("on").addEventListener("click", () => trying(() => listCases(now.offset + STEP)));
for (const choice of document.querySelectorAll("input[name=panels]")) choice.addEventListener("change", () => now.case && trying(() => open(now.case)));
trying(async () => {
  try { await begin(); }
  catch (error) { if (error.status === 401) return showDoor(); throw error; }
});
