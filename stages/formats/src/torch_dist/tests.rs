//! What the real packages wrote is read; what is written is read back however it is cut; damage is an error.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

mod others;

use proptest::prelude::*;

use super::*;
use crate::{DType, pickle::Value, safetensors};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/megatron_ckpt/untied_v512").join(name)
}

fn hf(name: &str) -> Vec<u8> {
    let path = golden("hf/model.safetensors");
    let tensor = &safetensors::read_header(&path).unwrap()[name];
    fs::read(path).unwrap()[tensor.at as usize..][..tensor.len as usize].to_vec()
}

fn read(reader: &Reader, key: &str, start: &[u64], size: &[u64]) -> Vec<u8> {
    let width = reader.tensor(key).unwrap().dtype.size();
    let mut out = vec![0; (size.iter().product::<u64>() * width) as usize];
    reader.read(key, start, size, &mut out).unwrap();
    out
}

const PACKAGES: [&str; 2] = ["megatron_core0.16", "megatron_core0.20dev"];

#[test]
fn what_megatron_wrote_is_read() {
    for package in PACKAGES {
        let (iteration, dir) = newest(&golden(package)).unwrap();
        assert_eq!(iteration, 0);
        assert_eq!(newest(&dir).unwrap(), (0, dir.clone()));
        let reader = Reader::open(&dir).unwrap();
        assert_eq!(reader.tensors().len(), 9);
        let shape = |key: &str| reader.tensor(key).unwrap().shape.clone();
        assert_eq!(shape("embedding.word_embeddings.weight"), [512, 64]);
        assert_eq!(shape("decoder.layers.mlp.linear_fc1.weight"), [4, 320, 64]);
        assert_eq!(reader.tensor("decoder.layers.mlp.linear_fc1.weight").unwrap().chunks.len(), 8);

        assert_eq!(read(&reader, "output_layer.weight", &[0, 0], &[512, 64]), hf("lm_head.weight"));
        assert_eq!(read(&reader, "decoder.final_layernorm.weight", &[0], &[64]), hf("model.norm.weight"));
        // Rows 8..24 of the second key-value head of layer 2 begin after a group (two query heads, k, v), two query
        // heads, in rows of 64.
        let k = read(&reader, "decoder.layers.self_attention.linear_qkv.weight", &[2, 64 + 32, 0], &[1, 16, 64]);
        assert_eq!(k, hf("model.layers.2.self_attn.k_proj.weight")[16 * 128..32 * 128]);
        // A box over both chunks of fc1: the last row of gate and the first of up, columns 3 and 4.
        let cut = read(&reader, "decoder.layers.mlp.linear_fc1.weight", &[3, 159, 3], &[1, 2, 2]);
        let gate = &hf("model.layers.3.mlp.gate_proj.weight")[(159 * 64 + 3) * 2..][..4];
        let up = &hf("model.layers.3.mlp.up_proj.weight")[3 * 2..][..4];
        assert_eq!(cut, [gate, up].concat());

        let common = reader.common().unwrap().unwrap();
        let common = common.root().items().map_or(common.root(), |list| list[0]);
        assert_eq!(common.get("iteration").unwrap().as_int(), Some(0));
        assert_eq!(common.get("checkpoint_version").unwrap().as_float(), Some(3.0));
        let states: Vec<_> = reader.objects().filter(|key| key.contains("_extra_state")).collect();
        assert_eq!(states.len(), 16);
        let state = reader.object(states[0]).unwrap();
        assert!(state.root().items().unwrap()[0].is_none());
    }
}

/// Writes what Megatron wrote, through our writer: the decoded tables say the same of every tensor and object.
#[test]
fn what_we_write_is_what_megatron_writes_but_for_the_places() {
    let theirs = golden("megatron_core0.16/iter_0000000");
    let reader = Reader::open(&theirs).unwrap();
    let root = tempfile::tempdir().unwrap();
    let dir = begin(root.path(), 0).unwrap();
    let mut writer = RankWriter::create(&dir, 0).unwrap();
    for (key, tensor) in reader.tensors() {
        for chunk in &tensor.chunks {
            let bytes = read(&reader, key, chunk.offset(), chunk.size());
            writer.tensor(key, &tensor.shape, chunk.offset(), chunk.size(), tensor.dtype, &mut &bytes[..]).unwrap();
        }
    }
    writer.extra_states(4).unwrap();
    finish(root.path(), 0, writer.finish().unwrap(), &Finish::default()).unwrap();
    let ours = newest(root.path()).unwrap().1;

    let table = |dir: &Path| {
        let table = metadata::decode(&fs::read(dir.join(METADATA)).unwrap()).unwrap();
        let tensors: BTreeMap<_, _> = table
            .tensors
            .into_iter()
            .map(|(key, tensor)| {
                let mut chunks: Vec<_> =
                    tensor.chunks.into_iter().map(|(region, _)| (region.start, region.size)).collect();
                chunks.sort();
                (key, (tensor.dtype, tensor.shape, chunks))
            })
            .collect();
        (tensors, table.objects.into_keys().collect::<Vec<_>>())
    };
    assert_eq!(table(&ours), table(&theirs));
    let json = |dir: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(dir.join("metadata.json")).unwrap()).unwrap()
    };
    assert_eq!(json(&ours), json(&theirs));
    for name in ["common.pt", "train_state.pt"] {
        let pickle = |dir: &Path| {
            let bytes = fs::read(dir.join(name)).unwrap();
            let archive = crate::zip::Archive::open(&bytes[..], 0, bytes.len() as u64).unwrap();
            let members: Vec<_> = archive.members().map(|(name, member)| (name.to_owned(), member.len)).collect();
            (
                archive.read(&bytes[..], "data/0", 99).ok(),
                members.into_iter().filter(|m| m.0 != "data.pkl").collect::<Vec<_>>(),
            )
        };
        assert_eq!(pickle(&ours), pickle(&theirs), "{name}");
    }
    let again = Reader::open(&ours).unwrap();
    for (key, tensor) in reader.tensors() {
        let zero = vec![0; tensor.shape.len()];
        assert_eq!(read(&again, key, &zero, &tensor.shape), read(&reader, key, &zero, &tensor.shape), "{key}");
    }
}

#[test]
fn the_same_content_has_the_same_bytes() {
    let write = || {
        let root = tempfile::tempdir().unwrap();
        let dir = begin(root.path(), 7).unwrap();
        let mut writer = RankWriter::create(&dir, 0).unwrap();
        writer.tensor("a", &[2, 3], &[0, 0], &[2, 3], DType::F32, &mut &[5; 24][..]).unwrap();
        writer.object("rng/shard_0_1", &Value::dict([("seed", Value::Int(1 << 40))])).unwrap();
        finish(root.path(), 7, writer.finish().unwrap(), &Finish::default()).unwrap();
        let mut files = BTreeMap::new();
        for dir in [root.path().to_owned(), root.path().join("iter_0000007")] {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path.strip_prefix(root.path()).unwrap().to_owned();
                    files.insert(name, fs::read(path).unwrap());
                }
            }
        }
        files
    };
    let files = write();
    assert_eq!(files, write());
    assert_eq!(files[Path::new(LATEST)], b"7");
    assert_eq!(files.len(), 8, "{:?}", files.keys());
}

/// A tensor cut along every axis at random places, by several ranks.
fn cuts(len: u64) -> impl Strategy<Value = Vec<u64>> {
    prop::collection::btree_set(1..len.max(2), 0..4).prop_map(move |inner| {
        std::iter::once(0).chain(inner.into_iter().filter(|&at| at < len)).chain([len]).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_box_of_any_cutting(
        (shape, cuts, boxes) in prop::collection::vec(1u64..9, 1..4).prop_flat_map(|shape| {
            let cuts = shape.iter().map(|&len| cuts(len)).collect::<Vec<_>>();
            let one = shape.iter().map(|&len| (0..len).prop_flat_map(move |at| (Just(at), 0..=len - at))).collect::<Vec<_>>();
            (Just(shape), cuts, prop::collection::vec(one, 1..4))
        }),
        ranks in 1usize..4,
    ) {
        let root = tempfile::tempdir().unwrap();
        let dir = begin(root.path(), 1).unwrap();
        let elements: u64 = shape.iter().product();
        let value = |index: &[u64]| index.iter().zip(&shape).fold(0u64, |flat, (&i, &len)| flat * len + i);
        let all = |start: &[u64], size: &[u64]| {
            let mut indices = vec![vec![]];
            for (&start, &size) in start.iter().zip(size) {
                indices = indices.iter().flat_map(|at: &Vec<u64>| (start..start + size).map(|i| [&at[..], &[i]].concat())).collect();
            }
            indices.iter().flat_map(|index| (value(index) as u16).to_le_bytes()).collect::<Vec<u8>>()
        };
        let mut writers: Vec<_> = (0..ranks).map(|rank| RankWriter::create(&dir, rank).unwrap()).collect();
        let mut grid = vec![(vec![], vec![])];
        for cut in &cuts {
            grid = grid.iter().flat_map(|(start, size): &(Vec<u64>, Vec<u64>)| cut.windows(2).map(|w| {
                ([&start[..], &[w[0]]].concat(), [&size[..], &[w[1] - w[0]]].concat())
            })).collect();
        }
        for (i, (start, size)) in grid.iter().enumerate() {
            let bytes = all(start, size);
            writers[i % ranks].tensor("t", &shape, start, size, DType::I16, &mut &bytes[..]).unwrap();
        }
        let mut entries: Vec<_> = writers.into_iter().flat_map(|writer| writer.finish().unwrap()).collect();
        finish(root.path(), 1, entries.clone(), &Finish::default()).unwrap();
        let reader = Reader::open(&newest(root.path()).unwrap().1).unwrap();
        for one in &boxes {
            let (start, size): (Vec<_>, Vec<_>) = one.iter().copied().unzip();
            prop_assert_eq!(read(&reader, "t", &start, &size), all(&start, &size));
        }
        prop_assert_eq!(read(&reader, "t", &vec![0; shape.len()], &shape).len() as u64, elements * 2);

        // A replica, or a hole, is not saved.
        begin(root.path(), 2).unwrap();
        let last = entries.pop().unwrap();
        prop_assert!(entries.is_empty() || finish(root.path(), 2, entries.clone(), &Finish::default()).is_err());
        entries.extend([last.clone(), last]);
        prop_assert!(finish(root.path(), 2, entries, &Finish::default()).is_err());
        prop_assert_eq!(newest(root.path()).unwrap().0, 1);
    }

    #[test]
    fn a_damaged_table_is_an_error_or_reads_inside(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let mut bytes = fs::read(golden("megatron_core0.16/iter_0000000/.metadata")).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(table) = metadata::decode(&bytes) {
            let _ = canonical::canonical(table.tensors);
        }
    }

    #[test]
    fn a_damaged_record_is_an_error_or_has_its_size(
        changes in prop::collection::vec((0usize..1705, any::<u8>()), 1..6)
    ) {
        let path = golden("megatron_core0.16/iter_0000000/__0_1.distcp");
        let mut bytes = fs::read(path).unwrap()[265_003..265_003 + 1705].to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok((at, _)) = payload::locate_tensor(&bytes[..], 0, bytes.len() as u64, DType::Bf16, &[1, 64]) {
            prop_assert!(at + 128 <= bytes.len() as u64);
        }
    }
}

/// torch itself does not look: it loads such a checkpoint as if nothing had happened.
#[test]
fn a_flipped_byte_of_a_tensor_is_found() {
    let root = tempfile::tempdir().unwrap();
    let dir = begin(root.path(), 0).unwrap();
    let mut writer = RankWriter::create(&dir, 0).unwrap();
    let bytes: Vec<u8> = (0..4000u32).flat_map(|n| (n as u16).to_le_bytes()).collect();
    writer.tensor("t", &[40, 100], &[0, 0], &[40, 100], DType::I16, &mut &bytes[..]).unwrap();
    let entries = writer.finish().unwrap();
    let (file, place) = (entries[0].file.clone(), entries[0].at + entries[0].len / 2);
    finish(root.path(), 0, entries, &Finish::default()).unwrap();
    let dir = newest(root.path()).unwrap().1;
    let rows = |reader: &Reader, from: u64, to: u64| {
        let mut out = vec![0; ((to - from) * 200) as usize];
        reader.read("t", &[from, 0], &[to - from, 100], &mut out).map(|()| out)
    };
    let whole = Reader::open(&dir).unwrap();
    assert_eq!(rows(&whole, 10, 40).unwrap(), bytes[2000..]);
    assert_eq!(rows(&whole, 0, 20).unwrap(), bytes[..4000]);
    whole.check_rest().unwrap();

    let mut damaged = fs::read(dir.join(&file)).unwrap();
    damaged[place as usize] ^= 4;
    fs::write(dir.join(&file), damaged).unwrap();
    let said = |error: anyhow::Error| {
        let error = format!("{error:#}");
        assert!(error.contains(&file) && error.contains("do not have the checksum"), "{error}");
    };
    said(rows(&Reader::open(&dir).unwrap(), 0, 40).unwrap_err());
    // Who reads a part cannot know yet; the rest tells, wherever the damage is.
    for (from, to) in [(0, 5), (30, 40), (10, 30)] {
        let reader = Reader::open(&dir).unwrap();
        rows(&reader, from, to).unwrap();
        said(reader.check_rest().unwrap_err());
    }
}

/// A checkpoint as NeMo or a non-homogeneous model spells it: prefix, a key a layer, halves of fc1.
#[test]
fn other_spellings_are_read_as_one() {
    let root = tempfile::tempdir().unwrap();
    let dir = begin(root.path(), 0).unwrap();
    let mut writer = RankWriter::create(&dir, 0).unwrap();
    let bytes = |first: u8| (first..first + 6).collect::<Vec<_>>();
    let mut put = |key: &str, shape: &[u64], first| {
        writer.tensor(key, shape, &vec![0; shape.len()], shape, DType::U8, &mut &bytes(first)[..]).unwrap();
    };
    put("module.decoder.final_norm.weight", &[6], 0);
    for (layer, first) in [(0, 10), (1, 30)] {
        put(&format!("module.decoder.layers.{layer}.mlp.linear_fc1.weight_w"), &[2, 3], first);
        put(&format!("module.decoder.layers.{layer}.mlp.linear_fc1.weight_v"), &[2, 3], first + 10);
    }
    for (layer, expert, first) in [(0, 0, 50), (0, 1, 60), (1, 0, 70), (1, 1, 80)] {
        let stem = format!("module.decoder.layers.{layer}.mlp.experts.experts.{expert}");
        put(&format!("{stem}.linear_fc1.weight_w"), &[1, 6], first);
        put(&format!("{stem}.linear_fc1.weight_v"), &[1, 6], first + 100);
        put(&format!("{stem}.linear_fc2.weight"), &[6, 1], first);
    }
    put("optimizer.state.exp_avg.module.decoder.final_norm.weight", &[6], 0);
    let entries = writer.finish().unwrap();
    finish(root.path(), 0, entries.clone(), &Finish::default()).unwrap();
    let reader = Reader::open(&newest(root.path()).unwrap().1).unwrap();
    assert_eq!(read(&reader, "decoder.final_layernorm.weight", &[0], &[6]), bytes(0));
    let fc1 = "decoder.layers.mlp.linear_fc1.weight";
    assert_eq!(reader.tensor(fc1).unwrap().shape, [2, 4, 3]);
    assert_eq!(read(&reader, fc1, &[0, 0, 0], &[2, 4, 3]), [bytes(10), bytes(20), bytes(30), bytes(40)].concat());
    let [fc1_experts, fc2_experts] =
        ["fc1", "fc2"].map(|part| format!("decoder.layers.mlp.experts.experts.linear_{part}.weight"));
    assert_eq!(reader.tensor(&fc1_experts).unwrap().shape, [2, 2, 2, 6]);
    assert_eq!(read(&reader, &fc1_experts, &[0, 1, 0, 0], &[1, 1, 2, 6]), [bytes(60), bytes(160)].concat());
    assert_eq!(read(&reader, &fc2_experts, &[0, 1, 0, 0], &[2, 1, 6, 1]), [bytes(60), bytes(80)].concat());
    assert!(reader.tensor("optimizer.state.exp_avg.module.decoder.final_norm.weight").is_some());

    begin(root.path(), 1).unwrap();
    let without: Vec<_> =
        entries.into_iter().filter(|entry| !entry.key.contains("layers.0.mlp.linear_fc1.weight_v")).collect();
    finish(root.path(), 1, without, &Finish::default()).unwrap();
    let error = format!("{:#}", Reader::open(&newest(root.path()).unwrap().1).unwrap_err());
    assert!(error.contains(fc1) && error.contains("3 of 4"), "{error}");
}

#[test]
fn what_is_missing_or_damaged_is_said_with_its_place() {
    let root = tempfile::tempdir().unwrap();
    let error = format!("{:#}", newest(root.path()).unwrap_err());
    assert!(error.contains("no Megatron checkpoint") && error.contains(LATEST), "{error}");
    fs::write(root.path().join(LATEST), "5").unwrap();
    assert!(format!("{:#}", newest(root.path()).unwrap_err()).contains("iter_0000005"));

    let dir = root.path().join("iter_0000005");
    fs::create_dir(&dir).unwrap();
    let theirs = golden("megatron_core0.16/iter_0000000");
    for name in [METADATA, "__0_0.distcp", "__0_1.distcp"] {
        fs::copy(theirs.join(name), dir.join(name)).unwrap();
    }
    let reader = Reader::open(&newest(root.path()).unwrap().1).unwrap();
    let mut out = vec![0; 64 * 2];
    let mut fails = |reader: &Reader, key: &str, word: &str| {
        let error = format!("{:#}", reader.read(key, &[0], &[64], &mut out).unwrap_err());
        assert!(error.contains(key) && error.contains(word), "{error}");
    };
    fails(&reader, "decoder.final_norm", "has no");
    fs::File::options().write(true).open(dir.join("__0_0.distcp")).unwrap().set_len(271_900).unwrap();
    fails(&reader, "decoder.final_layernorm.weight", "__0_0.distcp");
    fs::write(dir.join(METADATA), b"\x80\x02]q\x00.").unwrap();
    assert!(format!("{:#}", Reader::open(&dir).unwrap_err()).contains("a list"));
    assert!(Reader::open(&dir).is_err());
}

/// A chunk of 5 GiB, as a hole in its file, and one behind it: the lengths and offsets that need 64 bits.
#[test]
fn chunks_and_offsets_beyond_32_bits() {
    let root = tempfile::tempdir().unwrap();
    let dir = begin(root.path(), 0).unwrap();
    let mut writer = RankWriter::create(&dir, 0).unwrap();
    let shape = [5u64 << 10, 1 << 20];
    let slot = writer.reserve("big", &shape, &[0, 0], &shape, DType::U8).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&*slot.file, b"end", slot.at + slot.len - 3).unwrap();
    writer.seal(slot, 0).unwrap();
    writer.tensor("next", &[3], &[0], &[3], DType::U8, &mut &b"abc"[..]).unwrap();
    let small = writer.reserve("before", &[1 << 20], &[0], &[1 << 20], DType::U8).unwrap();
    writer.seal(small, 0).unwrap();
    let entries = writer.finish().unwrap();
    assert_eq!((entries[0].file.as_str(), entries[1].file.as_str()), ("__0_0.distcp", "__0_1.distcp"));
    // Everything in one file, as other writers have it: the second record begins beyond 2³².
    let mut joined = entries;
    let file = fs::File::options().write(true).open(dir.join("__0_0.distcp")).unwrap();
    for (i, entry) in joined.iter_mut().enumerate().skip(1) {
        let mut record = vec![0; entry.len as usize];
        let from = fs::File::open(dir.join("__0_1.distcp")).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&from, &mut record, entry.at).unwrap();
        entry.at = (5 << 30) + ((i as u64) << 24);
        entry.file = "__0_0.distcp".into();
        std::os::unix::fs::FileExt::write_all_at(&file, &record, entry.at).unwrap();
    }
    finish(root.path(), 0, joined, &Finish::default()).unwrap();
    let reader = Reader::open(&newest(root.path()).unwrap().1).unwrap();
    assert_eq!(read(&reader, "big", &[(5 << 10) - 1, (1 << 20) - 4], &[1, 4]), b"\0end");
    assert_eq!(read(&reader, "next", &[0], &[3]), b"abc");
    assert_eq!(read(&reader, "before", &[(1 << 20) - 1], &[1]), [0]);
}
