"""What is sent back in the words of OpenAI's API, whole or piece by piece."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from flan_jax.inference import News
from flan_jax.jobs.assistants import Assistant
from flan_jax.jobs.serve_requests import Ask, Refused


class Reply:
  """What is sent back, whole or piece by piece."""

  def __init__(
    self, assistant: Assistant, chat: bool, body: Mapping[str, Any], asks: Sequence[Ask]
  ):
    kind = "chat.completion" if chat else "text_completion"
    self._chat, self._spell = chat, assistant.source.vocabulary.decode
    self._prompt_tokens = sum(len(ask.prompt) for ask in asks) // body.get("n", 1)
    self._kind = f"{kind}.chunk" if chat and body.get("stream") else kind
    self._logprobs = "logprobs" in body and body["logprobs"] is not False  # 0 asks for them
    self._head = {
      "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
      "object": self._kind,
      "created": int(time.time()),
      "model": assistant.name,
    }
    self._texts, self._last = [""] * len(asks), [News(-1, "", (), ())] * len(asks)
    self.counts_tokens = bool((body.get("stream_options") or {}).get("include_usage"))

  def take(self, which: int, news: News) -> int:
    """Takes news in; how many tokens were told of before."""
    if news.finish == "broken":
      raise Refused(500, "the model's logits are not finite")
    before = len(self._last[which].tokens)
    self._texts[which] += news.text
    self._last[which] = news
    return before

  def whole(self) -> dict[str, Any]:
    choices = []
    for which, (text, news) in enumerate(zip(self._texts, self._last, strict=True)):
      said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
      choices.append(self._choice(which, said, news, 0))
    return {**self._head, "choices": choices, "usage": self._usage()}

  def begins(self) -> list[dict[str, Any]]:
    """The first pieces: of a chat, who speaks."""
    if not self._chat:
      return []
    role = {"delta": {"role": "assistant", "content": ""}}
    silent = News(-1, "", (), ())
    return [
      {**self._head, "choices": [self._choice(which, role, silent, 0)]}
      for which in range(len(self._texts))
    ]

  def piece(self, which: int, news: News) -> dict[str, Any]:
    before = self.take(which, news)
    said = {"delta": {"content": news.text}} if self._chat else {"text": news.text}
    return {**self._head, "choices": [self._choice(which, said, news, before)]}

  def usage(self) -> dict[str, Any]:
    return {**self._head, "choices": [], "usage": self._usage()}

  def _choice(self, which: int, said: Mapping[str, Any], news: News, before: int) -> dict[str, Any]:
    logprobs = self._told_logprobs(news, before) if self._logprobs else None
    return {"index": which, **said, "logprobs": logprobs, "finish_reason": news.finish}

  def _told_logprobs(self, news: News, before: int) -> dict[str, Any]:
    tokens, values = (
      [self._spell([token]) for token in news.tokens[before:]],
      news.logprobs[before:],
    )
    if not self._chat:
      return {"tokens": tokens, "token_logprobs": list(values)}
    pairs = zip(tokens, values, strict=True)
    told = [{"token": token, "logprob": value, "top_logprobs": []} for token, value in pairs]
    return {"content": told}

  def _usage(self) -> dict[str, int]:
    written = sum(len(news.tokens) for news in self._last)
    read = self._prompt_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
