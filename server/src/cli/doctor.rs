//! `nemoserve doctor`: what this machine can serve, and why not the rest.

use std::time::{SystemTime, UNIX_EPOCH};

use engine::model::family;
use engine::{Engine, EngineConfig, Machine, ModelConfig};

use crate::args::{DoctorArgs, ServeArgs, TestShapes, exit};
use crate::config::Settings;
use crate::startup::{bytes, count};

/// Prints the findings.
pub fn run(args: &DoctorArgs) -> u8 {
    let machine = Machine::survey();
    let bandwidth = machine.measure_bandwidth();
    println!("{}", describe(&machine, bandwidth));
    println!("The family, as published (bf16), on the CPU:\n");
    for member in FAMILY {
        println!(
            "  {:<22} {}",
            member.name,
            member.verdict(&machine, bandwidth)
        );
    }
    println!(
        "\nTokens/s is what one stream could reach at most: memory bandwidth over the weights that\n\
         one token reads. Measured rates are lower. FP8 and NVFP4 releases take half and a third.\n"
    );
    let demo = judge("the embedded demo", &ServeArgs::default());
    let folder = args.model.as_ref().map_or(Ok(()), |folder| {
        let serve = ServeArgs {
            model: Some(folder.clone()),
            ..ServeArgs::default()
        };
        judge(&folder.display().to_string(), &serve)
    });
    let kernels = if args.self_test {
        check_kernels(&machine, args)
    } else {
        Ok(())
    };
    if demo.and(folder).and(kernels).is_ok() {
        exit::OK
    } else {
        exit::COMMAND
    }
}

fn describe(machine: &Machine, bandwidth: f64) -> String {
    let accelerators = match machine.num_accelerators {
        None => "not built in (cargo build --release --features cuda)".to_owned(),
        Some(n) => n.to_string(),
    };
    format!(
        "nemoserve {}\n\n\
         {:<22} {}\n{:<22} {}\n{:<22} {} free for this process\n\
         {:<22} {}/s read by all cores (measured)\n{:<22} {accelerators}\n",
        env!("CARGO_PKG_VERSION"),
        "CPU threads",
        machine.num_cores,
        "instruction set",
        machine.isa,
        "memory",
        bytes(machine.available_memory),
        "memory bandwidth",
        bytes(bandwidth as u64),
        "CUDA devices",
    )
}

/// Opens a model without reading weights, and says what would run.
fn judge(name: &str, args: &ServeArgs) -> Result<(), ()> {
    let opened = Settings::new(args).and_then(|settings| {
        let tokenizer = settings.tokenizer()?;
        settings.template(tokenizer.as_deref())?;
        let config: EngineConfig = settings.engine.clone();
        Ok(Engine::open(config)?.info().clone())
    });
    match opened {
        Ok(info) => {
            println!(
                "{name}: can be served ({} parameters, weights {}, context {} tokens, up to {} at once)",
                count(info.num_parameters),
                bytes(info.weight_bytes),
                info.max_model_len,
                info.max_num_seqs,
            );
            println!(
                "  on {}: {} KV blocks {}, {} state slots {}, workspace {}, left to others {}",
                info.device,
                info.num_blocks,
                bytes(u64::from(info.num_blocks) * info.block_bytes),
                info.num_slots,
                bytes(u64::from(info.num_slots) * info.slot_bytes),
                bytes(info.workspace_bytes),
                bytes(info.reserve_bytes),
            );
            Ok(())
        }
        Err(error) => {
            println!("{name}: cannot be served: {error}");
            Err(())
        }
    }
}

/// Every operation, how far it was off, and how far it may be. Inputs are fresh ones every time.
fn check_kernels(machine: &Machine, args: &DoctorArgs) -> Result<(), ()> {
    let seed = args.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos() as u64 % 1_000_000_000)
    });
    let parts = args
        .device
        .parse()
        .and_then(|device| Ok((device, test_model(args)?)))
        .and_then(|(device, model)| {
            machine
                .self_test(device, model.as_ref(), seed)
                .map_err(|error| error.to_string())
        });
    let parts = match parts {
        Err(error) => {
            println!("self-test: {error}");
            return Err(());
        }
        Ok(parts) => parts,
    };
    println!(
        "\nself-test of the kernels on {}, seed {seed} (--seed {seed} draws the same inputs):",
        args.device
    );
    let device = args.device.parse().ok();
    if let Some(library) = device.and_then(Machine::product_library) {
        println!("  library for large products: {library}");
    }
    for part in &parts {
        println!("  {}:", part.name);
        for outcome in &part.outcomes {
            println!(
                "    {:<27} {} (off by {:.1e}, {:.0e} allowed)",
                outcome.operation,
                if outcome.is_ok() { "ok" } else { "WRONG" },
                outcome.max_error,
                outcome.tolerance,
            );
        }
    }
    if parts.iter().all(engine::TestedPart::is_ok) {
        Ok(())
    } else {
        println!("self-test: results are wrong on this device");
        Err(())
    }
}

/// Whose shapes to test at; `None`: small ones.
fn test_model(args: &DoctorArgs) -> Result<Option<ModelConfig>, String> {
    let parse = |text: &str, path: &std::path::Path| {
        ModelConfig::parse(text, path)
            .map(Some)
            .map_err(|error| error.to_string())
    };
    match args.shapes {
        TestShapes::Small => Ok(None),
        TestShapes::Super => parse(family::SUPER, "super".as_ref()),
        TestShapes::Nano => parse(family::NANO, "nano".as_ref()),
        TestShapes::Model => {
            let folder = args.model.as_ref();
            let folder = folder.ok_or("--shapes model wants a --model folder")?;
            let path = folder.join("config.json");
            let text = std::fs::read_to_string(&path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            parse(&text, &path)
        }
    }
}

/// A published model, by the numbers that decide where it fits. All weights are bf16.
struct Member {
    name: &'static str,
    parameters: u64,
    /// Parameters that one token reads.
    active: u64,
    /// f32 KV of one token over all attention layers.
    kv_bytes_per_token: u64,
    /// f32 state of one sequence over all Mamba layers.
    slot_bytes: u64,
}

/// From the published configurations.
const FAMILY: &[Member] = &[
    Member {
        name: "Nano 3 4B",
        parameters: 3_974_000_000,
        active: 3_974_000_000,
        kv_bytes_per_token: 32 << 10,
        slot_bytes: 85_100_000,
    },
    Member {
        name: "Nano v2 9B",
        parameters: 8_890_000_000,
        active: 8_890_000_000,
        kv_bytes_per_token: 32 << 10,
        slot_bytes: 145_600_000,
    },
    Member {
        name: "Nano 3 30B-A3B",
        parameters: 31_580_000_000,
        active: 3_580_000_000,
        kv_bytes_per_token: 12 << 10,
        slot_bytes: 49_900_000,
    },
    Member {
        name: "Super 120B-A12B",
        parameters: 120_670_000_000,
        active: 12_770_000_000,
        kv_bytes_per_token: 16 << 10,
        slot_bytes: 172_700_000,
    },
    Member {
        name: "Ultra 550B-A55B",
        parameters: 549_300_000_000,
        active: 56_100_000_000,
        kv_bytes_per_token: 24 << 10,
        slot_bytes: 413_300_000,
    },
];

impl Member {
    /// One conversation of a few pages: less is not worth serving.
    const CONTEXT: u64 = 8192;

    fn needs(&self) -> u64 {
        let bf16 = 2;
        // The padding slot is memory too.
        self.parameters * bf16 + Self::CONTEXT * self.kv_bytes_per_token + 2 * self.slot_bytes
    }

    fn verdict(&self, machine: &Machine, bandwidth: f64) -> String {
        let needs = self.needs();
        let has = machine.available_memory;
        if needs > has {
            return format!(
                "does not fit: needs {}, {} more than there is",
                bytes(needs),
                bytes(needs - has)
            );
        }
        let rate = bandwidth / (self.active * 2) as f64;
        format!(
            "fits: needs {} with {} tokens of context; at most {rate:.1} tokens/s a stream",
            bytes(needs),
            Self::CONTEXT,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(available_memory: u64) -> Machine {
        Machine {
            num_cores: 1,
            isa: "portable",
            available_memory,
            num_accelerators: None,
        }
    }

    #[test]
    fn the_verdict_turns_where_memory_does() {
        for member in FAMILY {
            let needs = member.needs();
            assert!(member.verdict(&machine(needs), 1e11).starts_with("fits"));
            let verdict = member.verdict(&machine(needs - 1), 1e11);
            assert!(verdict.starts_with("does not fit"), "{verdict}");
        }
    }

    #[test]
    fn a_stream_is_bounded_by_bandwidth() {
        let nano = &FAMILY[0];
        // 3.974 B bf16 parameters at 79.48 GB/s: ten times a second.
        let verdict = nano.verdict(&machine(u64::MAX), 79.48e9);
        assert!(verdict.contains("10.0 tokens/s"), "{verdict}");
    }
}
