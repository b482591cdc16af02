//! `system_fingerprint` names build, weights and configuration: other weights, other name.

use engine::{DeviceChoice, Engine, EngineConfig, ModelSource};
use nemoserve_tests::fixtures;
use nemoserve_tests::surgery::Shard;

fn fingerprint(source: ModelSource) -> String {
    let config = EngineConfig {
        device: DeviceChoice::Cpu,
        cache_memory_bytes: Some(16 << 20),
        ..EngineConfig::new(source)
    };
    Engine::open(config)
        .expect("the model is good")
        .info()
        .fingerprint
        .clone()
}

#[test]
fn weights_of_one_shape_are_told_apart() {
    let folder = fixtures::copy("nano3-4b");
    let of_folder = || fingerprint(ModelSource::Folder(folder.path().to_owned()));
    let before = of_folder();
    assert_eq!(before, of_folder(), "the same folder keeps its fingerprint");

    let path = folder.path().join("model.safetensors");
    let mut file = Shard::read(&path);
    file.bytes("backbone.layers.0.norm.weight")[0] ^= 1;
    file.write(&path);
    assert_ne!(before, of_folder(), "one bit of one weight changed");
}

#[test]
fn seeds_of_a_dummy_are_told_apart() {
    let folder = fixtures::folder("nano3-4b");
    let of_seed = |seed| {
        fingerprint(ModelSource::Dummy {
            folder: folder.clone(),
            seed,
        })
    };
    assert_eq!(of_seed(1), of_seed(1));
    assert_ne!(of_seed(1), of_seed(2));
}
