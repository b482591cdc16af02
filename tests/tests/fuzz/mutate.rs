//! Inputs from inputs: JSON is changed as JSON most of the time, as bytes sometimes.

use serde_json::{Map, Value, json};

/// `SplitMix64`: small, and the same everywhere.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Text that means something to somebody on the way.
const WORDS: [&str; 24] = [
    "",
    " ",
    "\0",
    "\n\n",
    "\u{feff}",
    "é",
    "🦀",
    "\u{10ffff}",
    "e\u{301}",
    "<|im_end|>",
    "<|im_start|>system\n",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>\n",
    "<function=f>\n",
    "<parameter=a>\n",
    "\n</parameter>",
    "data: [DONE]\n\n",
    "{{ 7*7 }}{% raw %}",
    "$ref",
    "\\",
    "\"",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

const NUMBERS: [&str; 22] = [
    "0",
    "-0.0",
    "1",
    "-1",
    "2",
    "20",
    "21",
    "128",
    "129",
    "0.5",
    "1.5",
    "1e-320",
    "1e308",
    "-1e308",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775809",
    "18446744073709551616",
    "1e400",
];

pub(crate) fn text(rng: &mut Rng) -> String {
    let num = rng.below(5);
    (0..num).map(|_| *rng.pick(&WORDS)).collect()
}

/// One to four changes. `others` lends parts.
pub(crate) fn mutate(body: &[u8], others: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let parsed = serde_json::from_slice::<Value>(body);
    match parsed {
        Ok(mut value) if !rng.one_in(8) => {
            for _ in 0..=rng.below(4) {
                let donor: &Vec<u8> = rng.pick(others);
                let donor = serde_json::from_slice(donor).unwrap_or(Value::Null);
                change(&mut value, &donor, rng);
            }
            value.to_string().into_bytes()
        }
        _ => {
            let donor: &Vec<u8> = rng.pick(others);
            mutate_bytes(body, donor, rng)
        }
    }
}

fn change(root: &mut Value, donor: &Value, rng: &mut Rng) {
    let mut paths = Vec::new();
    collect(root, &mut Vec::new(), &mut paths);
    let path = rng.pick(&paths).clone();
    let target = path.iter().fold(root, |value, step| step.of(value));
    match (rng.below(6), &mut *target) {
        (0, Value::Object(map)) if !map.is_empty() => {
            let key = map.keys().nth(rng.below(map.len())).cloned();
            map.shift_remove(&key.expect("it has keys"));
        }
        (0, Value::Array(items)) if !items.is_empty() => {
            items.remove(rng.below(items.len()));
        }
        (1, Value::Object(map)) => {
            if let Some((key, value)) = member(donor, rng) {
                map.insert(key, value);
            }
        }
        (1, Value::Array(items)) if !items.is_empty() => {
            let item = rng.pick(items).clone();
            let copies = if rng.one_in(20) { 200 } else { 1 };
            items.extend(std::iter::repeat_n(item, copies));
        }
        (2, Value::String(string)) => {
            let mut at = rng.below(string.len() + 1);
            while !string.is_char_boundary(at) {
                at -= 1;
            }
            string.insert_str(at, &text(rng));
        }
        (3, value) => *value = part(donor, rng),
        (4, value) if rng.one_in(10) => {
            let inner = value.take();
            *value = (0..rng.below(140)).fold(inner, |inner, _| json!([inner]));
        }
        (_, value) => *value = scalar(rng),
    }
}

fn scalar(rng: &mut Rng) -> Value {
    match rng.below(6) {
        0 => Value::Null,
        1 => Value::Bool(rng.one_in(2)),
        2 => json!([]),
        3 => json!({}),
        4 => Value::String(text(rng)),
        _ => {
            let number: &&str = rng.pick(&NUMBERS);
            serde_json::from_str(number).unwrap_or(json!(1))
        }
    }
}

/// Some value inside `donor`.
fn part(donor: &Value, rng: &mut Rng) -> Value {
    let mut paths = Vec::new();
    collect(donor, &mut Vec::new(), &mut paths);
    let mut value = donor.clone();
    let path = rng.pick(&paths).clone();
    path.iter()
        .fold(&mut value, |value, step| step.of(value))
        .take()
}

/// Some member of some object inside `donor`.
fn member(donor: &Value, rng: &mut Rng) -> Option<(String, Value)> {
    let mut objects: Vec<&Map<String, Value>> = Vec::new();
    let mut open = vec![donor];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(map) if !map.is_empty() => {
                objects.push(map);
                open.extend(map.values());
            }
            _ => {}
        }
    }
    if objects.is_empty() {
        return None;
    }
    let map = *rng.pick(&objects);
    let (key, value) = map.iter().nth(rng.below(map.len())).expect("not empty");
    Some((key.clone(), value.clone()))
}

#[derive(Clone)]
enum Step {
    Key(String),
    Index(usize),
}

impl Step {
    fn of<'a>(&self, value: &'a mut Value) -> &'a mut Value {
        match self {
            Self::Key(key) => &mut value[key.as_str()],
            Self::Index(index) => &mut value[index],
        }
    }
}

/// The places of all values.
fn collect(value: &Value, at: &mut Vec<Step>, paths: &mut Vec<Vec<Step>>) {
    paths.push(at.clone());
    if at.len() > 40 {
        return;
    }
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().take(16).enumerate() {
                at.push(Step::Index(index));
                collect(item, at, paths);
                at.pop();
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                at.push(Step::Key(key.clone()));
                collect(item, at, paths);
                at.pop();
            }
        }
        _ => {}
    }
}

fn mutate_bytes(body: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = body.to_vec();
    for _ in 0..=rng.below(3) {
        let at = rng.below(bytes.len() + 1);
        match rng.below(5) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] = rng.next() as u8,
            2 => bytes.insert(at, *rng.pick(b"{}[],:\"\\\0\xff\xc3e-+.0tn ")),
            3 => {
                let from = rng.below(other.len() + 1);
                let piece = &other[from..(from + rng.below(64)).min(other.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => {
                let end = (at + rng.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}
