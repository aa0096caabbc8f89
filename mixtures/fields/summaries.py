"""Fields of the summarisation datasets from TFDS: mails, news, chats, reviews and guides with a shorter text each."""

from flan_jax.mixtures.fields.mending import one_line


def aeslc(record: dict) -> dict | None:
  """A mail and its subject; the source has a line for each sentence, whatever the mail's own lines were."""
  body, subject = one_line(record["email_body"]), one_line(record["subject_line"])
  return {"body": body, "subject": subject} if body and subject else None
