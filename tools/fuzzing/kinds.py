"""Every class of inputs that is read and not trusted."""

from __future__ import annotations

from fuzzing import answers, configs, dumps, excuses, exports, pictures, typed, weights, words

KINDS = {
    kind.name: kind
    for kind in (
        *(configs.KIND, weights.FILE, weights.INDEXED, weights.FOLDER, words.KIND, pictures.KIND),
        *(dumps.KIND, answers.KIND, excuses.KIND, exports.KIND, typed.KIND),
    )
}
