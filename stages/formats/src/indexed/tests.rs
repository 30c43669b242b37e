//! Files by hand, there and back, merged, and damaged in every byte.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// Documents of sequences of ids.
type Documents = Vec<Vec<Vec<u32>>>;

fn write(prefix: &Path, dtype: TokenType, documents: &Documents) {
    let mut writer = IndexedWriter::create(prefix, dtype).unwrap();
    for document in documents {
        let mut block = Block::new(dtype);
        for sequence in document {
            block.sequence(sequence).unwrap();
        }
        block.end_document();
        writer.append(&block).unwrap();
    }
    writer.finish().unwrap();
}

fn read(prefix: &Path) -> anyhow::Result<Documents> {
    let dataset = IndexedDataset::open(prefix)?;
    dataset.validate()?;
    (0..dataset.documents())
        .map(|d| {
            let ids = |i| anyhow::Ok(dataset.sequence(i)?.to_vec().into_iter().map(|id| id as u32).collect());
            dataset.document(d)?.map(ids).collect()
        })
        .collect()
}

#[test]
fn the_bytes_are_those_of_the_format() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("a.b_text_document");
    write(&prefix, TokenType::U16, &vec![vec![vec![1, 258], vec![3]], vec![], vec![vec![65535]]]);
    assert_eq!(std::fs::read(bin_path(&prefix)).unwrap(), [1, 0, 2, 1, 3, 0, 255, 255]);
    let mut idx = b"MMIDIDX\0\0".to_vec();
    idx.extend([1u8, 0, 0, 0, 0, 0, 0, 0, 8]);
    idx.extend([3u64, 4].map(u64::to_le_bytes).concat());
    idx.extend([2i32, 1, 1].map(i32::to_le_bytes).concat());
    idx.extend([0i64, 4, 6].map(i64::to_le_bytes).concat());
    idx.extend([0i64, 2, 2, 3].map(i64::to_le_bytes).concat());
    assert_eq!(std::fs::read(idx_path(&prefix)).unwrap(), idx);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "nothing else is left");

    let dataset = IndexedDataset::open(&prefix).unwrap();
    assert_eq!((dataset.sequences(), dataset.documents(), dataset.tokens()), (3, 3, 4));
    assert_eq!(dataset.length(0).unwrap(), 2);
    let mut ids = Vec::new();
    dataset.sequence(0).unwrap().read(1..9, &mut ids);
    assert_eq!(ids, [258]);
    assert!(dataset.sequence(3).is_err() && dataset.document(3).is_err() && dataset.length(3).is_err());
}

#[test]
fn an_empty_dataset_is_42_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("empty");
    write(&prefix, TokenType::I32, &vec![]);
    assert_eq!(std::fs::metadata(bin_path(&prefix)).unwrap().len(), 0);
    assert_eq!(std::fs::metadata(idx_path(&prefix)).unwrap().len(), 42);
    assert_eq!(read(&prefix).unwrap(), Documents::new());
}

#[test]
fn what_is_not_finished_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = IndexedWriter::create(&directory.path().join("a"), TokenType::U16).unwrap();
    let mut block = Block::new(TokenType::U16);
    block.sequence(&[1]).unwrap();
    writer.append(&block).unwrap();
    assert!(writer.append(&Block::new(TokenType::I32)).is_err(), "another type");
    drop(writer);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn ids_that_do_not_fit_are_refused() {
    assert!(Block::new(TokenType::U16).sequence(&[65_536]).is_err());
    assert!(Block::new(TokenType::I32).sequence(&[1 << 31]).is_err());
    assert!(Block::new(TokenType::F32).sequence(&[1]).is_err());
    assert_eq!(TokenType::for_vocabulary(65_499), TokenType::U16);
    assert_eq!(TokenType::for_vocabulary(65_500), TokenType::I32);
    for code in 0..=9 {
        assert_eq!(TokenType::from_code(code).map(TokenType::code), (1..=8).contains(&code).then_some(code));
    }
}

#[test]
fn other_types_and_modes_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("typed");
    let cases: [(TokenType, Vec<u8>); 6] = [
        (TokenType::U8, vec![7, 200]),
        (TokenType::I8, vec![7, 56]),
        (TokenType::I16, [7i16, 200].map(i16::to_le_bytes).concat()),
        (TokenType::I64, [7i64, 200].map(i64::to_le_bytes).concat()),
        (TokenType::F32, [7f32, 200.].map(f32::to_le_bytes).concat()),
        (TokenType::F64, [7f64, 200.].map(f64::to_le_bytes).concat()),
    ];
    for (dtype, data) in cases {
        let mut idx = [MAGIC.as_slice(), &1u64.to_le_bytes(), &[dtype.code()]].concat();
        idx.extend([1u64, 2].map(u64::to_le_bytes).concat());
        idx.extend(2i32.to_le_bytes());
        idx.extend([0i64, 0, 1].map(i64::to_le_bytes).concat());
        idx.push(0); // the mode of a multimodal sequence
        std::fs::write(idx_path(&prefix), idx).unwrap();
        std::fs::write(bin_path(&prefix), data).unwrap();
        let last = if dtype == TokenType::I8 { 56 } else { 200 };
        assert_eq!(IndexedDataset::open(&prefix).unwrap().sequence(0).unwrap().to_vec(), [7, last], "{dtype:?}");
    }
}

#[test]
fn a_damaged_index_is_an_error_or_other_documents_and_never_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("damaged");
    let documents: Documents = vec![vec![vec![1, 2], vec![3]], vec![], vec![vec![4, 5, 6]]];
    write(&prefix, TokenType::U16, &documents);
    let good = std::fs::read(idx_path(&prefix)).unwrap();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut idx = good.clone();
            idx[at] ^= 1 << bit;
            std::fs::write(idx_path(&prefix), idx).unwrap();
            // Lengths and offsets follow from each other; where documents end among the sequences is free.
            match read(&prefix) {
                Ok(other) => assert!(at >= 70 && other.concat() == documents.concat(), "byte {at} bit {bit}"),
                Err(error) => assert!(error.to_string().contains("damaged."), "byte {at} bit {bit}: {error}"),
            }
        }
    }
    for cut in 0..good.len() {
        std::fs::write(idx_path(&prefix), &good[..cut]).unwrap();
        assert!(IndexedDataset::open(&prefix).is_err(), "cut at {cut}");
    }
    std::fs::write(idx_path(&prefix), &good).unwrap();
    std::fs::write(bin_path(&prefix), [0; 10]).unwrap();
    let error = IndexedDataset::open(&prefix).unwrap_err().to_string();
    assert!(error.contains("damaged.bin has 10 bytes"), "{error}");
    std::fs::write(bin_path(&prefix), [0; 14]).unwrap();
    assert!(IndexedDataset::open(&prefix).unwrap_err().to_string().contains("do not belong together"));
    std::fs::remove_file(bin_path(&prefix)).unwrap();
    assert!(format!("{:#}", IndexedDataset::open(&prefix).unwrap_err()).contains("damaged.bin"));
}

fn documents() -> impl Strategy<Value = Documents> {
    let sequence = prop::collection::vec(0u32..65_536, 0..5);
    prop::collection::vec(prop::collection::vec(sequence, 0..4), 0..6)
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_merging_is_appending(a in documents(), b in documents(), wide in any::<bool>()) {
        let dtype = if wide { TokenType::I32 } else { TokenType::U16 };
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        write(&place("a"), dtype, &a);
        write(&place("b"), dtype, &b);
        prop_assert_eq!(&read(&place("a")).unwrap(), &a);
        let mut writer = IndexedWriter::create(&place("merged"), dtype).unwrap();
        for name in ["a", "b"] {
            writer.append_dataset(&IndexedDataset::open(&place(name)).unwrap(), |_| Ok(())).unwrap();
        }
        let counts = writer.counts();
        writer.finish().unwrap();
        let both = [a, b].concat();
        prop_assert_eq!(counts.1, both.len() as u64);
        write(&place("both"), dtype, &both);
        for path in [idx_path, bin_path] {
            prop_assert_eq!(std::fs::read(path(&place("merged"))).unwrap(), std::fs::read(path(&place("both"))).unwrap());
        }
    }

    #[test]
    fn any_bytes_are_no_crash(idx in prop::collection::vec(any::<u8>(), 0..120), bin in prop::collection::vec(any::<u8>(), 0..20)) {
        let directory = tempfile::tempdir().unwrap();
        let prefix = directory.path().join("any");
        // A right beginning, so that the arithmetic behind it is reached.
        let idx = [MAGIC.as_slice(), &1u64.to_le_bytes(), &idx].concat();
        std::fs::write(idx_path(&prefix), idx).unwrap();
        std::fs::write(bin_path(&prefix), bin).unwrap();
        let _ = read(&prefix);
    }
}
