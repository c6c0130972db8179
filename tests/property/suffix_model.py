"""What a group's tree must hold, the slow and obvious way: every context as a tuple, in a dictionary."""

from collections import defaultdict

Context = tuple[int, ...]


class SuffixModel:
    """Texts of several requests, and what was counted after each context."""

    def __init__(self) -> None:
        self.texts: dict[int, list[int]] = {}
        self.counts: dict[Context, dict[int, int]] = defaultdict(dict)
        self.last_path: dict[tuple[Context, int], int] = {}
        self._prefixes: set[Context] = {()}

    def begin(self, request: int, prompt: list[int]) -> None:
        self.texts[request] = list(prompt)

    def append(self, request: int, token: int, weight: int, path: int) -> None:
        """Count in the longest context that had seen the token, and in all longer ones."""
        text = self.texts[request]
        for start in range(len(text) + 1):
            context = tuple(text[start:])
            if token in self.counts[context]:
                for same in self._like(context):
                    self.counts[same][token] += weight
                    self.last_path[same, token] = path
                break
            self.counts[context][token] = weight
            self.last_path[context, token] = path
        text.append(token)
        self._prefixes.add(tuple(text))

    def _like(self, context: Context) -> list[Context]:
        """This context, and the shorter ones that were seen in the same places."""
        places = self._places(context)
        shorter = (context[start:] for start in range(len(context) + 1))
        return [other for other in shorter if self._places(other) == places]

    def _places(self, context: Context) -> set[Context]:
        length = len(context)
        return {prefix for prefix in self._prefixes if prefix[len(prefix) - length :] == context}
