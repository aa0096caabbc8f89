"""The page of `flan-jax serve`: an instruction, an input, and the answers of a model or two as they are written."""

from flan_jax.web_page import page

_STYLE = """
main { max-width: 72rem; }
form { display: grid; gap: .6rem; }
label { display: grid; gap: .2rem; font-size: .9rem; }
textarea, input, select, button { font: inherit; color: inherit; background: transparent; border: 1px solid #8886;
  border-radius: .4rem; padding: .5rem; width: 100%; box-sizing: border-box; }
option { color: black; }
textarea { resize: vertical; }
.settings, .answers { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.answers { grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); margin-top: 1rem; }
.answer { border: 1px solid #8886; border-radius: .4rem; padding: .2rem .8rem .8rem; }
.answer h2 { font-size: 1rem; overflow-wrap: anywhere; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 3rem; }
.told { font-size: .8rem; opacity: .7; }
.wrong { color: #c33; opacity: 1; }
button[type=submit] { font-weight: 600; cursor: pointer; }
"""

_BODY = """
<h1>flan-jax</h1>
<form id="ask">
<label>Instruction<textarea id="instruction" rows="3" required autofocus></textarea></label>
<label>Input, if there is any<textarea id="input" rows="3"></textarea></label>
<div class="settings">
<label>Model<select id="first"></select></label>
<label>Beside it<select id="second"></select></label>
<label>Temperature (0: the most probable)
<input id="temperature" type="number" min="0" max="5" step="0.1" value="0"></label>
<label>Tokens at most<input id="max_tokens" type="number" min="1" step="1" value="128"></label>
</div>
<div class="settings"><button type="submit">Answer</button><button type="button" id="stop" disabled>Stop</button></div>
</form>
<div class="answers" id="answers"></div>
"""

_SCRIPT = """
const at = id => document.getElementById(id);
let going = null;

fetch('/v1/models').then(reply => reply.json()).then(found => {
  const names = found.data.map(model => model.id);
  for (const [box, choices] of [['first', names], ['second', ['', ...names]]])
    for (const name of choices) at(box).add(new Option(name || 'none', name));
  at('second').value = names[1] || '';
});

function pane(name) {
  const box = document.createElement('section');
  box.className = 'answer';
  const [title, said, told] = ['h2', 'div', 'div'].map(kind => box.appendChild(document.createElement(kind)));
  title.textContent = name;
  said.className = 'said';
  told.className = 'told';
  at('answers').append(box);
  return {said, told};
}

async function answer(model, signal) {
  const {said, told} = pane(model);
  const words = [at('instruction').value, at('input').value].filter(text => text.trim()).join('\\n\\n');
  const began = performance.now();
  let tokens = 0;
  try {
    const body = JSON.stringify({
      model, messages: [{role: 'user', content: words}], stream: true, stream_options: {include_usage: true},
      temperature: Number(at('temperature').value), max_tokens: Number(at('max_tokens').value)});
    const headers = {'Content-Type': 'application/json'};
    const reply = await fetch('/v1/chat/completions', {method: 'POST', signal, headers, body});
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = '', part; !(part = await reader.read()).done;) {
      const lines = (rest + part.value).split('\\n\\n');
      rest = lines.pop();
      for (const line of lines.filter(line => line !== 'data: [DONE]')) {
        const piece = JSON.parse(line.slice('data: '.length));
        if (piece.error) throw new Error(piece.error.message);
        if (piece.usage) tokens = piece.usage.completion_tokens;
        for (const choice of piece.choices) said.append(choice.delta.content || '');
      }
    }
    const seconds = (performance.now() - began) / 1000;
    told.textContent = `${tokens} tokens, ${(tokens / seconds).toFixed(1)} a second`;
  } catch (error) {
    told.classList.toggle('wrong', error.name !== 'AbortError');
    told.textContent = error.name === 'AbortError' ? 'stopped' : error.message;
  }
}

at('ask').addEventListener('submit', async event => {
  event.preventDefault();
  going?.abort();
  const mine = going = new AbortController();
  at('answers').replaceChildren();
  at('stop').disabled = false;
  const models = [at('first').value, at('second').value].filter(name => name);
  await Promise.all(models.map(model => answer(model, mine.signal)));
  if (going === mine) at('stop').disabled = true;
});
at('stop').addEventListener('click', () => going?.abort());
at('ask').addEventListener('keydown', event => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) at('ask').requestSubmit();
});
"""

PAGE = page("flan-jax", _BODY, _STYLE, _SCRIPT)
"""As HTML, which loads nothing from elsewhere."""
