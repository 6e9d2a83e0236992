//! `metastore check`: verifies the files of a stopped server.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use super::Error;
use super::data_dir::{DataDir, has_store};
use crate::storage::check::{self, Report};

/// Checks the store in `data_dir`; draws a progress bar on stderr if told to.
pub fn run(data_dir: &Path, wal_dir: Option<&Path>, draw: bool) -> Result<Report, Error> {
    let path = || data_dir.to_owned();
    if !has_store(data_dir) {
        return Err(Error::NoStore { path: path() });
    }
    let folders = DataDir::open(data_dir, wal_dir)?;
    let bar = if draw {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} rows, {eta} left");
    bar.set_style(style.expect("the template is well formed"));
    let report = check::check(&folders.data, &folders.log, |done, rows| {
        if done % 1024 == 0 {
            bar.set_length(rows);
            bar.set_position(done);
        }
    });
    bar.finish_and_clear();
    report.map_err(|finding| Error::Unsound {
        path: path(),
        finding,
    })
}
