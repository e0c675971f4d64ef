"""Text of tokens that come one by one."""

from transformers import PreTrainedTokenizerBase


class TextPieces:
    """Turns tokens into pieces of text that joined are the text of all of them.

    A character whose bytes are spread over tokens is held back until the last of them.

    Args:
        tokenizer: The tokenizer; special tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.token_ids: list[int] = []
        self.n_context = 0
        self.n_told = 0

    def add(self, token_id: int) -> str:
        """Takes in a token and returns the text that it completes, empty if it completes none.

        Args:
            token_id: The next token.

        Returns:
            What is new.
        """
        self.token_ids.append(token_id)
        piece = self._new()
        # A character that lacks bytes is decoded as a replacement character.
        if not piece or piece.endswith("\ufffd"):
            return ""
        self.n_context, self.n_told = self.n_told, len(self.token_ids)
        return piece

    def rest(self) -> str:
        """Returns what is still held back when no token follows."""
        piece = self._new()
        self.n_context, self.n_told = self.n_told, len(self.token_ids)
        return piece

    def _new(self) -> str:
        # A few tokens before decide about spaces; the whole text would cost more with every token.
        before = self._decoded(self.token_ids[self.n_context : self.n_told])
        return self._decoded(self.token_ids[self.n_context :])[len(before) :]

    def _decoded(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)
