"""Conversations as training text, with a loss weight for every piece.

The bytes are those of `model/chat_template.jinja`; `evaluate.py` holds the two
against each other, so training and serving cannot drift apart.
"""

import json

TOOLS_HEADER = "# Tools\n\nYou can call these functions:\n\n<tools>"
TOOLS_FOOTER = (
    "\n</tools>\n\nTo call one, reply in this form:\n<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n"
    "</parameter>\n</function>\n</tool_call>"
)
ANSWER = 1.0
QUESTION = 0.05


def tool_text(tool):
    """One function of the tool list, as the template writes it."""
    function = tool["function"]
    lines = ["", "<function>", f"<name>{function['name']}</name>"]
    lines.append(f"<description>{function['description']}</description>")
    lines.append("<parameters>")
    parameters = function["parameters"]
    for name, field in parameters["properties"].items():
        lines += ["<parameter>", f"<name>{name}</name>", f"<type>{field['type']}</type>"]
        if "description" in field:
            lines.append(f"<description>{field['description']}</description>")
        if "enum" in field:
            lines.append(f"<enum>{json.dumps(field['enum'])}</enum>")
        lines.append("</parameter>")
    lines.append(f"<required>{json.dumps(parameters['required'])}</required>")
    lines += ["</parameters>", "</function>"]
    return "\n".join(lines)


def call_text(call):
    function = call["function"]
    text = f"<tool_call>\n<function={function['name']}>\n"
    for name, value in function["arguments"].items():
        text += f"<parameter={name}>\n{value}\n</parameter>\n"
    return text + "</function>\n</tool_call>\n"


def system_text(messages, tools):
    text = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if tools:
        text += ("\n\n" if text else "") + TOOLS_HEADER + "".join(map(tool_text, tools)) + TOOLS_FOOTER
    return f"<|im_start|>system\n{text}<|im_end|>\n"


def pieces(doc):
    """[(text, loss weight)] of a document.

    A document is {"messages", "tools", "thinking", "low_effort"}. Without
    thinking every assistant turn is learnt. With thinking only the turns after
    the last user message are: the template has cut the thoughts of the others.
    """
    messages = doc["messages"]
    out = [(system_text(messages, doc["tools"]), 0.0)]
    last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            effort = "\n\n{reasoning effort: low}" if doc["low_effort"] and i == last_user else ""
            out += [("<|im_start|>user\n", 0.0), (message["content"] + effort, QUESTION), ("<|im_end|>\n", 0.0)]
        elif role == "tool":
            first = messages[i - 1]["role"] != "tool"
            last = i + 1 == len(messages) or messages[i + 1]["role"] != "tool"
            text = (
                "<|im_start|>user\n" if first else ""
            ) + f"<tool_response>\n{message['content']}\n</tool_response>\n"
            out.append((text + ("<|im_end|>\n" if last else ""), 0.0))
        elif role == "assistant":
            calls = "".join(map(call_text, message.get("tool_calls", [])))
            content = message["content"]
            thought = message.get("reasoning_content") if i > last_user else None
            if thought:
                out.append(("<|im_start|>assistant\n<think>\n", 0.0))
                body = f"{thought}\n</think>\n{content}"
            else:
                out.append(("<|im_start|>assistant\n<think></think>", 0.0))
                body = ("\n" if "reasoning_content" in message else "") + content
            if calls:
                body = body.rstrip("\n") + "\n" + calls
            learnt = i > last_user or not doc["thinking"]
            out += [(body + "<|im_end|>", ANSWER if learnt else 0.0), ("\n", 0.0)]
    return out


def prompt_text(messages, tools=(), thinking=False, low_effort=False):
    """What the server feeds the model before it answers."""
    doc = {"messages": messages, "tools": tools, "thinking": thinking, "low_effort": low_effort}
    text = "".join(piece for piece, _ in pieces(doc))
    return text + "<|im_start|>assistant\n" + ("<think>\n" if thinking else "<think></think>")


def encode(doc, tokenizer):
    """(token ids, loss weights); pieces meet only where no token crosses."""
    ids, weights = [], []
    for text, weight in merge_unlearnt(pieces(doc)):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        ids += tokens
        weights += [weight] * len(tokens)
    return ids, weights


def merge_unlearnt(parts):
    """Join neighbouring pieces of equal weight."""
    merged = []
    for text, weight in parts:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        elif text:
            merged.append((text, weight))
    return merged
