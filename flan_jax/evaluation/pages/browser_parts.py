"""What the browser of examples is made of: HTML, CSS, and JavaScript that puts texts into the page as texts."""

BODY = """
<p class="legend">{told} Prompts of more than {prompt_characters} characters are shown without their middle.
Everything is in <code>examples.jsonl</code> of the report. Right is what earns all of its metric, wrong what
earns less.</p>
<noscript><p>Leafing through them needs JavaScript; <code>examples.jsonl</code> has one a line.</p></noscript>
<form id="browse" hidden>
<label>Task<select id="task"></select></label>
<label>Template<select id="template"></select></label>
<label>Show<select id="kind"></select></label>
<label>With the words<input id="words" type="search" autocomplete="off"></label>
<div class="turn"><button type="button" id="previous">Previous</button>
<output id="place" for="task template kind words"></output>
<button type="button" id="next">Next</button></div>
</form>
<article id="example" aria-label="Example"></article>
<script type="application/json" id="example-data">{data}</script>
"""

STYLE = """
#browse { display: grid; gap: .6rem .8rem; grid-template-columns: repeat(auto-fit, minmax(min(12rem, 100%), 1fr));
  margin: 1rem 0; }
#browse[hidden] { display: none; }
#browse label { display: grid; gap: .15rem; font-size: .85rem; color: var(--muted); min-width: 0; }
#browse select, #browse input, #browse button { font: inherit; color: var(--ink); background: var(--paper);
  border: 1px solid var(--muted); border-radius: .4rem; padding: .4rem .6rem; width: 100%; min-width: 0;
  min-height: 2.6rem; box-sizing: border-box; }
#browse button { cursor: pointer; width: auto; } #browse button:disabled { opacity: .5; cursor: default; }
#browse :focus-visible { outline: 2px solid var(--after); outline-offset: 1px; }
.turn { grid-column: 1 / -1; display: flex; gap: .8rem; align-items: center; justify-content: space-between; }
.turn output { text-align: center; font-size: .85rem; }
#example { min-height: 20rem; } #example pre { max-height: 24rem; overflow-y: auto; }
#example td:first-child { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 7rem; }
#example .chosen { font-weight: 600; box-shadow: inset 0 -2px var(--ink); }
#example table { width: 100%; } #example td:not(:first-child), #example th:not(:first-child) { text-align: right; }
#example dd { white-space: pre-wrap; }
.chip.right { border-color: var(--good); color: var(--good); }
.chip.wrong { border-color: var(--collapsed); color: var(--collapsed); }
"""

SCRIPT = """
const at = id => document.getElementById(id);
const groups = JSON.parse(at('example-data').textContent);
const isRight = said => said.value >= 1;
const changed = (example, right) =>
  example.before !== undefined && isRight(example.after) === right && isRight(example.before) !== right;
const kinds = {
  'all': () => true,
  'right': example => isRight(example.after),
  'wrong': example => !isRight(example.after),
  'flipped to right': example => changed(example, true),
  'flipped to wrong': example => changed(example, false),
};
let shown = [], place = 0;

function made(kind, text = '', name = '') {
  const part = document.createElement(kind);
  part.textContent = text;
  part.className = name;
  return part;
}

function ofTask() {
  return groups.filter(group => group.task === at('task').value);
}

function fillTemplates() {
  at('template').replaceChildren(new Option('every template', ''));
  ofTask().forEach((group, k) => at('template').add(new Option(group.template, k)));
}

function textOf(example) {
  const said = [example.after, example.before].filter(said => said).map(said => said.text);
  const options = (example.options || []).map(option => option[0] + ' ' + option[1]);
  return [example.inputs, ...example.golds, ...options, ...said].join(' ').toLowerCase();
}

function choose() {
  const last = shown[place]?.example.index;
  const template = at('template').value, words = at('words').value.trim().toLowerCase();
  const chosen = ofTask().filter((group, k) => template === '' || k === Number(template));
  shown = chosen.flatMap(group => group.examples.map(example => ({group, example})))
    .filter(({example}) => kinds[at('kind').value](example) && (!words || textOf(example).includes(words)))
    .sort((one, other) => one.example.index - other.example.index);
  place = Math.max(0, shown.findIndex(({example}) => example.index === last));
  show();
}

function chip(said) {
  if (said.value > 0 && !isRight(said)) return '';  // a text that is partly right
  return made('span', isRight(said) ? 'right' : 'wrong', isRight(said) ? 'chip right' : 'chip wrong');
}

function facts({group, example}) {
  const list = made('dl');
  const add = (name, ...parts) => {
    const told = made('dd');
    told.append(...parts);
    list.append(made('dt', name), told);
  };
  add('template', group.template);
  add('example', String(example.index));
  add(example.golds.length > 1 ? 'right answers' : 'right answer', example.golds.join(' / '));
  for (const role of ['before', 'after'])
    if (example[role]) {
      const earned = example.options ? '' : `${group.metric} ${example[role].value.toFixed(3)} `;
      add(role, example[role].text + ' ', earned, chip(example[role]));
    }
  return list;
}

function optionTable({options, chosen, more}) {
  const box = made('div', '', 'scroll'), table = made('table'), head = table.createTHead().insertRow();
  const roles = chosen.length > 1 ? ['after', 'before'] : ['after'];
  const columns = roles.map((role, column) => ({role, column})).reverse();
  head.append(...['option', ...columns.map(({role}) => 'score ' + role)].map(name => made('th', name)));
  const body = table.createTBody();
  options.forEach(([text, label, right, ...scores], k) => {
    const row = body.insertRow(), first = made('td', text + ' ');
    if (label) first.append(made('small', label + ' '));
    if (right) first.append(made('span', 'right', 'chip right'));
    row.append(first);
    for (const {column} of columns) {
      const isChosen = chosen[column] === k;
      row.append(made('td', scores[column].toFixed(2) + (isChosen ? ' chosen' : ''), isChosen ? 'chosen' : ''));
    }
  });
  box.append(table);
  if (more) box.append(made('small', `and ${more} more options`));
  return box;
}

function show() {
  for (const name of ['previous', 'next']) at(name).disabled = shown.length < 2;
  const now = shown[place];
  at('place').textContent = now ? `${place + 1} of ${shown.length}` : 'no such example';
  at('example').replaceChildren();
  if (!now) return;
  const prompt = made('pre', now.example.inputs);
  prompt.tabIndex = 0;  // so that the keys scroll it
  at('example').append(facts(now), prompt);
  if (now.example.options) at('example').append(optionTable(now.example));
}

function step(by) {
  place = (place + by + shown.length) % shown.length;
  show();
}

for (const task of new Set(groups.map(group => group.task))) at('task').add(new Option(task, task));
const compares = groups.some(group => group.examples.some(example => example.before));
for (const kind of Object.keys(kinds))
  if (compares || !kind.startsWith('flipped')) at('kind').add(new Option(kind, kind));
at('task').addEventListener('change', () => { shown = []; fillTemplates(); choose(); });
for (const id of ['template', 'kind']) at(id).addEventListener('change', choose);
at('words').addEventListener('input', choose);
at('previous').addEventListener('click', () => step(-1));
at('next').addEventListener('click', () => step(1));
at('browse').addEventListener('submit', event => event.preventDefault());
fillTemplates();
at('browse').hidden = false;
choose();
"""
