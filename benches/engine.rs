//! Decode and prefill rates of the engine on the CPU, without a server around it.
//!
//!     cargo bench -p nemoserve-benches --bench engine -- [--dtype bf16] [--threads N] [--constrained]
//!
//! The model is a dummy: 0.49 billion random bf16 weights in the layer pattern and proportions of
//! Nemotron 3 Nano 4B. Decoding one stream reads every weight but the embedding table once per
//! token, so its rate is compared with how fast this machine reads memory.
//!
//! `--constrained` instead compares 64 streams that draw at temperature 1 under a JSON schema, each
//! mask over all 131,072 tokens, with 64 that draw freely.
//!
//! `--recorder` instead tells what recording the scheduler's plans adds to a step.

mod recorder;

use std::sync::Arc;
use std::time::{Duration, Instant};

use constraint::{Compiler, Grammar, GrammarGuide, Guide, Limits, Piece, Vocabulary};
use engine::{
    DeviceChoice, Engine, EngineConfig, EngineHandle, ModelConfig, ModelSource, StreamEvent,
};
use scheduler::{Request, SamplingParams, TenantId};

/// The first 28 layers of the 4B model's pattern, a third of its widths, its vocabulary.
const CONFIG: &str = r#"{
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M-M-M-MM-M-M*-M-M*-M-M-M*-M-",
    "hidden_size": 1024, "vocab_size": 131072, "max_position_embeddings": 4096,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
    "mamba_num_heads": 32, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4,
    "intermediate_size": 4608
}"#;

const PROMPT_LEN: u32 = 32;
const NUM_TOKENS: u32 = 96;
const LONG_PROMPT_LEN: u32 = 1024;

fn main() {
    let mut dtype = String::from("auto");
    let mut constrained = false;
    let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("every option has a value");
        match arg.as_str() {
            "--dtype" => dtype = value(),
            "--threads" => threads = value().parse().expect("a number of threads"),
            "--constrained" => constrained = true,
            "--recorder" => {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                runtime.expect("a runtime").block_on(recorder::compare());
                return;
            }
            // Cargo says this to every bench.
            "--bench" => {}
            other => panic!("{other}: expected --dtype, --threads, --constrained or --recorder"),
        }
    }

    let bandwidth = kernels::measure_read_bandwidth(threads);
    println!("memory: {bandwidth:.1} GB/s read by {threads} threads");

    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("config.json"), CONFIG).expect("it can be written to");
    let source = ModelSource::Dummy {
        folder: folder.path().to_owned(),
        seed: 0,
    };
    let opened = Engine::open(EngineConfig {
        device: DeviceChoice::Cpu,
        dtype: dtype.parse().expect("an arithmetic"),
        threads: Some(threads),
        max_num_seqs: 64,
        cache_memory_bytes: Some(if constrained { 2 << 30 } else { 1 << 30 }),
        ..EngineConfig::new(source)
    })
    .expect("the model is good");
    let info = opened.info().clone();
    let model: ModelConfig = opened.model().clone();
    println!(
        "model: {:.2} B parameters, {} MB of bf16 weights, {} arithmetic, {}",
        info.num_parameters as f64 / 1e9,
        info.weight_bytes / 1_000_000,
        info.dtype,
        info.device,
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let start = Instant::now();
    let handle = opened.start().expect("a thread");
    runtime.block_on(handle.ready()).expect("it loads");
    println!(
        "load: {:.2} s to invent the weights",
        start.elapsed().as_secs_f64()
    );

    if constrained {
        runtime.block_on(compare(&handle, info.vocab_size));
        return;
    }

    let greedy = SamplingParams {
        max_tokens: NUM_TOKENS,
        ..SamplingParams::default()
    };
    let table_bytes = (2 * model.vocab_size * model.hidden_size) as u64;
    let bytes_per_token = info.weight_bytes - table_bytes + 2 * info.slot_bytes;
    // The first run touches the caches' pages; its numbers are not the machine's.
    runtime.block_on(decode(&handle, 1, info.vocab_size, &greedy, None));
    for num_streams in [1, 8, 32] {
        let rate = runtime.block_on(decode(&handle, num_streams, info.vocab_size, &greedy, None));
        let share = if num_streams == 1 {
            let read = rate * bytes_per_token as f64 / 1e9;
            format!(
                ", {read:.1} GB/s, {:.0} % of memory",
                100.0 * read / bandwidth
            )
        } else {
            String::new()
        };
        println!("decode: {num_streams:2} streams, {rate:6.1} tokens/s{share}");
    }
    let time = runtime.block_on(prefill(&handle, info.vocab_size));
    println!(
        "prefill: {LONG_PROMPT_LEN} tokens, {:.0} tokens/s",
        f64::from(LONG_PROMPT_LEN) / time.as_secs_f64()
    );
    if let Some(resident) = resident_bytes() {
        println!(
            "memory: {} MB resident beyond the weights, of it at most {} MB cache",
            resident.saturating_sub(info.weight_bytes) / 1_000_000,
            (u64::from(info.num_blocks) * info.block_bytes
                + u64::from(info.num_slots) * info.slot_bytes)
                / 1_000_000,
        );
    }
}

/// Rates of 64 streams with and without a schema, in turns, and their ratio.
async fn compare(handle: &EngineHandle, vocab_size: u32) {
    const NUM_STREAMS: u32 = 64;
    let vocabulary = Arc::new(Vocabulary::new(vocab_size, piece, &[END]));
    let compiler = Compiler::new(Arc::clone(&vocabulary), Limits::default());
    let schema = r#"{"type": "array", "minItems": 100, "items": {"type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "role": {"enum": ["admin", "user"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}}},
        "required": ["name", "age", "role", "tags"], "additionalProperties": false}}"#;
    let grammar = compiler.compile(&Grammar::JsonSchema(schema.into()));
    let guide = Arc::new(Guide {
        grammar: Some(GrammarGuide {
            grammar: grammar.expect("the schema is sound"),
            trigger: None,
        }),
        ..Guide::new(vocabulary)
    });
    let drawn = SamplingParams {
        max_tokens: NUM_TOKENS / 3,
        temperature: 1.0,
        ..SamplingParams::default()
    };
    let (mut free, mut bound) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        free.push(decode(handle, NUM_STREAMS, vocab_size, &drawn, None).await);
        bound.push(decode(handle, NUM_STREAMS, vocab_size, &drawn, Some(&guide)).await);
    }
    free.sort_by(f64::total_cmp);
    bound.sort_by(f64::total_cmp);
    println!("free:        {NUM_STREAMS} streams, {free:.1?} tokens/s");
    println!("constrained: {NUM_STREAMS} streams, {bound:.1?} tokens/s");
    println!("ratio of the medians: {:.3}", bound[1] / free[1]);
}

/// Ends an answer.
const END: u32 = 2;

/// All bytes, what JSON is made of, and words: a vocabulary of the right size and of about the right
/// lengths.
fn piece(id: u32) -> Piece {
    const FIRST_BYTE: u32 = 1000;
    const FIRST_WORD: u32 = FIRST_BYTE + 256;
    const JSON: [&str; 8] = ["\":", "\",\"", "\": ", "{\"", "\"}", "},{", "\":\"", "]}"];
    match id {
        0..FIRST_BYTE => Piece::Control(format!("<SPECIAL_{id}>")),
        FIRST_BYTE..FIRST_WORD => Piece::Text(vec![(id - FIRST_BYTE) as u8]),
        _ if id - FIRST_WORD < 8 => Piece::Text(JSON[(id - FIRST_WORD) as usize].into()),
        _ => {
            let mut number = id.wrapping_mul(2_654_435_761);
            let mut text = vec![b' '; usize::from(id.is_multiple_of(2))];
            for _ in 0..2 + id % 7 {
                text.push(b'a' + (number % 26) as u8);
                number = (number / 26).wrapping_add(number.wrapping_mul(31));
            }
            Piece::Text(text)
        }
    }
}

fn request(handle: &EngineHandle, prompt: Vec<u32>, sampling: SamplingParams) -> Request {
    Request {
        id: handle.next_request_id(),
        prompt: prompt.into(),
        sampling: Arc::new(sampling),
        num_choices: 1,
        cache_salt: "".into(),
        boundaries: Arc::default(),
        priority: 0,
        tenant: TenantId::default(),
        tenant_weight: 1,
    }
}

/// Ids without a pattern that a cache could know.
fn prompt(salt: u32, len: u32, vocab_size: u32) -> Vec<u32> {
    (0..len)
        .map(|at| (at.wrapping_mul(2_654_435_761) ^ salt.wrapping_mul(40_503)) % vocab_size)
        .collect()
}

/// Tokens per second over all streams, while all of them decode and none prefills.
async fn decode(
    handle: &EngineHandle,
    num_streams: u32,
    vocab_size: u32,
    sampling: &SamplingParams,
    guide: Option<&Arc<Guide>>,
) -> f64 {
    let mut readers = tokio::task::JoinSet::new();
    for stream in 0..num_streams {
        let prompt = prompt(1000 * num_streams + stream, PROMPT_LEN, vocab_size);
        let mut stream = handle
            .submit(
                request(
                    handle,
                    prompt,
                    SamplingParams {
                        seed: stream.into(),
                        ..sampling.clone()
                    },
                ),
                guide.map(Arc::clone),
            )
            .expect("the queue is long enough");
        readers.spawn(async move {
            let mut times = Vec::new();
            while let Some(event) = stream.next().await {
                assert!(matches!(event, StreamEvent::Output(_)), "{event:?}");
                times.push(Instant::now());
            }
            times
        });
    }
    let times = readers.join_all().await;
    let all_decode = times.iter().map(|times| times[0]).max().expect("streams");
    let one_is_done = times
        .iter()
        .map(|times| *times.last().expect("tokens"))
        .min()
        .expect("streams");
    assert!(
        one_is_done > all_decode,
        "the streams did not all decode at once: there is no rate of all of them"
    );
    let num_tokens = times
        .iter()
        .flatten()
        .filter(|time| **time > all_decode && **time <= one_is_done)
        .count();
    num_tokens as f64 / (one_is_done - all_decode).as_secs_f64()
}

/// Time to the first token of a long prompt.
async fn prefill(handle: &EngineHandle, vocab_size: u32) -> Duration {
    let prompt = prompt(77, LONG_PROMPT_LEN, vocab_size);
    let start = Instant::now();
    let mut stream = handle
        .submit(
            request(
                handle,
                prompt,
                SamplingParams {
                    max_tokens: 1,
                    ..SamplingParams::default()
                },
            ),
            None,
        )
        .expect("the queue is long enough");
    while stream.next().await.is_some() {}
    start.elapsed()
}

/// What the kernel counts as ours, where it tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kib)
}
