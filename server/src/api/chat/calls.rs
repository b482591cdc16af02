//! Calls as chat completions write them.

use crate::api::choice::{CallDelta, Finish};
use crate::api::types::{CallItem, Calls, CustomItem, FunctionItem};

/// The calls of a whole answer.
pub(super) fn message(calls: &[CallDelta], legacy: bool) -> Calls<'_> {
    let whole = calls.iter().map(|call| item(call, &call.arguments));
    place(whole, legacy)
}

/// News of calls, a chunk each: a call begins without arguments.
pub(super) fn deltas(calls: &[CallDelta], legacy: bool) -> impl Iterator<Item = Calls<'_>> {
    calls.iter().flat_map(move |call| {
        let begin = call.start.is_some().then(|| item(call, ""));
        let more = (!call.arguments.is_empty()).then(|| {
            let named = item(call, &call.arguments);
            CallItem {
                id: None,
                kind: None,
                function: named.function.map(|function| FunctionItem {
                    name: None,
                    ..function
                }),
                custom: named.custom.map(|custom| CustomItem {
                    name: None,
                    ..custom
                }),
                ..named
            }
        });
        begin.into_iter().chain(more).map(move |item| {
            let item = CallItem {
                index: Some(call.index),
                ..item
            };
            place(std::iter::once(item), legacy)
        })
    })
}

/// The reason to finish, as this form of calls has it.
pub(super) fn finish_reason(finish: Finish, legacy: bool) -> &'static str {
    match finish {
        Finish::ToolCalls if legacy => "function_call",
        finish => finish.as_str(),
    }
}

fn item<'a>(call: &'a CallDelta, text: &'a str) -> CallItem<'a> {
    let name = call.start.as_ref().map(|start| &*start.name);
    CallItem {
        index: None,
        id: call.start.as_ref().map(|start| &*start.id),
        kind: Some(if call.custom { "custom" } else { "function" }),
        function: (!call.custom).then_some(FunctionItem {
            name,
            arguments: text,
        }),
        custom: call.custom.then_some(CustomItem { name, input: text }),
    }
}

fn place<'a>(items: impl Iterator<Item = CallItem<'a>>, legacy: bool) -> Calls<'a> {
    let mut items = items;
    if legacy {
        return Calls {
            function_call: items.next().and_then(|item| item.function),
            ..Calls::default()
        };
    }
    Calls {
        tool_calls: items.collect(),
        function_call: None,
    }
}
