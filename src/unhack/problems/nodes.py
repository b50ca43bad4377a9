"""Linked lists and binary trees of the public setup code, as plain values.

A node cannot leave a sandbox, so a call that returns one is wrapped: `list_values(call)` in the child walks `.next`,
`tree_values(call)` goes through a tree level by level. Both give what LeetCode prints: the values in order; for a tree
None for a missing child of a present node, and no None at the end. Expected nodes are brought to the same form here,
from literals only, so equal lists are equal structures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from unhack.types import PlainValue

BUILDERS = {"list_node": "list", "tree_node": "tree"}
SAME = {"is_same_list": "list", "is_same_tree": "tree"}
FLATTENERS = {"list": "unhack_list_values", "tree": "unhack_tree_values"}
MOST_NODES = 100_000

FLATTENER_CODE = f"""

def unhack_list_values(node):
    values = []
    while node is not None:
        values.append(node.val)
        if len(values) > {MOST_NODES}:
            raise ValueError("the list does not end")
        node = node.next
    return values


def unhack_tree_values(root):
    values, row = [], [root]
    for node in row:
        if node is None:
            values.append(None)
        else:
            values.append(node.val)
            row += [node.left, node.right]
        if len(row) > {2 * MOST_NODES}:
            raise ValueError("the tree does not end")
    while values and values[-1] is None:
        values.pop()
    return values
"""

LIST_CODE = """

class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next


def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
"""

TREE_CODE = """

class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right


def tree_node(values):
    if not values:
        return None
    root = TreeNode(values[0])
    parents, rest = [root], iter(values[1:])
    for parent in parents:
        for side in ("left", "right"):
            value = next(rest, None)
            if value is not None:
                setattr(parent, side, TreeNode(value))
                parents.append(getattr(parent, side))
    return root
"""


def setup_with_nodes(setup: str, calls: Sequence[str]) -> str:
    """`setup` with the builders that the calls use and it lacks, and with the flatteners when a call returns nodes."""
    text = "\n".join(calls)
    if "list_node(" in text and "def list_node(" not in setup:
        setup += LIST_CODE
    if "tree_node(" in text and "def tree_node(" not in setup:
        setup += TREE_CODE
    if any(f"{name}(" in text for name in FLATTENERS.values()):
        setup += FLATTENER_CODE
    return setup


def expected_nodes(kind: str, values: PlainValue) -> list[PlainValue]:
    """What the flattener of `kind` gives for the structure that `values` describe. ValueError when they are no list."""
    if values is None:
        return []
    if not isinstance(values, list):
        raise ValueError(f"the values of a {kind} must be a list, not {type(values).__name__}")
    return list(values) if kind == "list" else _level_order(values)


def _level_order(values: list[PlainValue]) -> list[PlainValue]:
    """The values without what belongs to no present node, and without None at the end."""
    kept: list[PlainValue] = []
    places = deque([None]) if values else deque()  # one entry per place that the next value may fill
    for value in values:
        if not places:
            break
        places.popleft()
        kept.append(value)
        if value is not None:
            places.extend((None, None))
    while kept and kept[-1] is None:
        kept.pop()
    return kept
