# SPDX-License-Identifier: Apache-2.0
"""A cache of keys and values with room for the tokens to come."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Tokens that a layer makes room for at least.
_ROOM = 32


class RoomyLayer(DynamicLayer):
    """Keys and values (B, heads, T, D) that grow in place: a layer of transformers copies all of
    them for each token. No gradient flows through it. `most` is how many tokens may come."""

    most: int
    _rooms: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Returns all keys and values so far, the given ones behind those of before."""
        if torch.is_autocast_enabled(key_states.device.type):
            # Rotary embeddings make keys float32, and attention would round all of them each time.
            key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not start:
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        keys, values, rooms = self.keys, self.values, self._rooms
        assert keys is not None and values is not None
        if rooms is None or not _is_in(keys, rooms[0]) or end > rooms[0].shape[-2]:
            length = max(end, min(self.most, max(2 * end, end + _ROOM)))
            rooms = self._rooms = (_roomy(keys, length), _roomy(values, length))
        for room, more in zip(rooms, (key_states, value_states), strict=True):
            room[..., start:end, :] = more
        self.keys, self.values = (room[..., :end, :] for room in rooms)
        return self.keys, self.values


def _is_in(keys: Tensor, room: Tensor) -> bool:
    """Returns whether the keys are the beginning of a room: not once rows were chosen."""
    return keys.data_ptr() == room.data_ptr() and len(keys) == len(room)


def _roomy(x: Tensor, length: int) -> Tensor:
    """Returns x (B, heads, T, D) with room for so many tokens, its own among them."""
    room = x.new_empty((*x.shape[:-2], length, x.shape[-1]))
    room[..., : x.shape[-2], :] = x
    return room


def roomy(cache: object, most: int) -> object:
    """Returns the cache, if of plain growing layers with room in them for `most` tokens."""
    if isinstance(cache, DynamicCache) and cache.layer_class_to_replicate is DynamicLayer:
        # It is called without arguments for each layer.
        cache.layer_class_to_replicate = type("RoomyLayer", (RoomyLayer,), {"most": most})
    return cache
