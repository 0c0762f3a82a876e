// Holds what a port wrote against test vectors, which `python -m conformance export --vectors DIR` writes.
//   rustc -O check.rs -o check && ./check DIR/float32.safetensors mine.safetensors [CASE]
// mine.safetensors has F32 tensors called CASE/CALL/TAP. Exit status: 0 near enough, 1 too far, 2 cannot be judged.
// Nothing that a header says is believed before the file bears it out.
use std::process::exit;

const VECTORS: &str = "{\"__metadata__\":{\"format\":\"t5g2ref-vectors\",\"version\":\"1\",";
struct File { path: String, header: String, data: Vec<u8> } // the header without its spaces
struct Tensor<'a> { shape: Vec<usize>, bytes: &'a [u8] }

impl Tensor<'_> {
    fn number(&self, i: usize) -> f64 {
        f64::from(f32::from_le_bytes(self.bytes[4 * i..4 * i + 4].try_into().unwrap()))
    }
}

fn stop(path: &str, why: &str) -> ! {
    eprintln!("{path}: {why}");
    exit(2)
}

fn load(path: String) -> File {
    let bytes = std::fs::read(&path).unwrap_or_else(|error| stop(&path, &error.to_string()));
    let length = bytes.get(..8).map_or(u64::MAX, |first| u64::from_le_bytes(first.try_into().unwrap()));
    if length > (bytes.len() as u64).saturating_sub(8) {
        stop(&path, "is no safetensors file: its header is longer than the file");
    }
    let (header, data) = bytes[8..].split_at(length as usize);
    let header = String::from_utf8_lossy(header).replace([' ', '\n'], "");
    File { header, data: data.to_vec(), path }
}

/// The numbers of a list that stands behind `key`, up to the bracket that ends it.
fn list(entry: &str, key: &str) -> Option<Vec<usize>> {
    let text = entry.split_once(key)?.1.split_once(']')?.0;
    text.split(',').filter(|word| !word.is_empty()).map(|word| word.parse().ok()).collect()
}

/// The tensor of that name: None where there is none, an error where its type is another.
fn find<'a>(file: &'a File, name: &str, kind: &str) -> Option<Result<Tensor<'a>, ()>> {
    let (_, after) = file.header.split_once(&format!("\"{name}\":{{"))?;
    let entry = after.split('}').next()?;
    if !entry.contains(&format!("\"dtype\":\"{kind}\"")) {
        return Some(Err(()));
    }
    let lists = list(entry, "\"shape\":[").zip(list(entry, "\"data_offsets\":["));
    let (shape, span) = lists.unwrap_or_else(|| stop(&file.path, &format!("{name} has no numbers that can be read")));
    let count = shape.iter().try_fold(if kind == "F32" { 4 } else { 1usize }, |a, b| a.checked_mul(*b));
    let bytes = match span[..] {
        [begin, end] => file.data.get(begin..end).filter(|bytes| Some(bytes.len()) == count),
        _ => None,
    };
    let bytes = bytes.unwrap_or_else(|| stop(&file.path, &format!("{name} lies where it cannot")));
    Some(Ok(Tensor { shape, bytes }))
}

/// What is wrong with the port's tap; "" where nothing is.
fn judge(vectors: &File, mine: &File, tap: &str) -> String {
    let ours = |more: &str, kind: &str| match find(vectors, &format!("{tap}{more}"), kind) {
        Some(Ok(tensor)) => tensor,
        _ => stop(&vectors.path, &format!("{tap}{more} is incomplete")),
    };
    let (value, allowed, compared) = (ours("", "F32"), ours("@allowed", "F32"), ours("@compared", "U8"));
    let tokens: Vec<usize> = (0..compared.bytes.len()).filter(|t| compared.bytes[*t] != 0).collect(); // no padding
    let fit = value.shape.len() == 2 && value.shape[0] == tokens.len() && allowed.shape == [tokens.len()];
    if !fit || value.bytes.is_empty() {
        stop(&vectors.path, &format!("{tap} is incomplete"));
    }
    let found = match find(mine, tap, "F32") {
        None => return "it is missing".into(),
        Some(Err(())) => return "its dtype is not F32".into(),
        Some(Ok(tensor)) => tensor,
    };
    let (width, last) = (value.shape[1], *compared.shape.last().unwrap_or(&1));
    let wanted = [&compared.shape[..], &[width]].concat();
    if found.shape != wanted {
        return format!("its shape is {:?}, expected {wanted:?}", found.shape);
    }
    if !(0..found.bytes.len() / 4).all(|i| found.number(i).is_finite()) {
        return "it has a NaN or an infinity".into();
    }
    for (row, token) in tokens.into_iter().enumerate() {
        let squares = (0..width).map(|i| (found.number(token * width + i) - value.number(row * width + i)).powi(2));
        let (off, most) = (squares.sum::<f64>().sqrt(), allowed.number(row));
        if !(off <= most) { // so that a NaN fails
            return format!("token ({}, {}) is {off:.3e} off, allowed {most:.3e}", token / last, token % last);
        }
    }
    String::new()
}

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if given.len() < 2 || given.len() > 3 {
        stop("usage", "check VECTORS.safetensors MINE.safetensors [CASE]");
    }
    let (vectors, mine) = (load(given[0].clone()), load(given[1].clone()));
    if !vectors.header.starts_with(VECTORS) {
        stop(&vectors.path, "these are no test vectors of version 1");
    }
    let names = vectors.header.split('"').filter_map(|name| name.strip_suffix("@compared")); // in their order
    let wanted = given.get(2).map(|case| format!("{case}/")).unwrap_or_default();
    let taps: Vec<&str> = names.filter(|tap| tap.starts_with(&wanted)).collect();
    if taps.is_empty() {
        stop(&vectors.path, "there is no such case: nothing was judged");
    }
    for tap in &taps {
        let wrong = judge(&vectors, &mine, tap);
        if !wrong.is_empty() {
            println!("FAIL {tap}: {wrong}");
            exit(1);
        }
    }
    println!("PASS {} taps", taps.len());
}
