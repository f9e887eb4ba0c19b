//! Files that appear whole or not at all, and are on stable storage when the call returns.

use crate::error::TrainerError;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Replaces the file at `path` by `bytes`: a neighbour is written, made durable, and renamed over it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainerError> {
    replace_with(path, |file| file.write_all(bytes))
}

/// Replaces the file at `path` by what `write` writes, in the same way.
pub(crate) fn replace_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), TrainerError> {
    let partial = partial_name(path);
    let file = File::create(&partial).map_err(TrainerError::io("create", &partial))?;
    let mut file = BufWriter::new(file);
    write(&mut file).and_then(|()| file.flush()).map_err(TrainerError::io("write", &partial))?;
    file.get_ref().sync_all().map_err(TrainerError::io("make durable", &partial))?;
    fs::rename(&partial, path).map_err(TrainerError::io("put in place", path))?;
    store::pulse::beat();
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), TrainerError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let open = File::open(folder).map_err(TrainerError::io("open", folder))?;
    open.sync_all().map_err(TrainerError::io("make durable", folder))
}

/// Creates a folder, and those above it, durably.
pub(crate) fn create_folder(folder: &Path) -> Result<(), TrainerError> {
    let missing = folder.ancestors().skip(1).take_while(|above| !above.as_os_str().is_empty() && !above.exists());
    let missing: Vec<_> = missing.collect();
    fs::create_dir_all(folder).map_err(TrainerError::io("create", folder))?;
    for created in std::iter::once(folder).chain(missing) {
        sync_folder(created.parent().unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}
