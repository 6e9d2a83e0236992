//! The log that the operator reads, in etcd's form: a JSON object a line, or columns.
//!
//! ```text
//! {"level":"info","ts":"2026-01-02T15:04:05.000000Z","caller":"metastore::server","msg":"…",fields}
//! 2026-01-02T15:04:05.000000Z <tab> info <tab> metastore::server <tab> … <tab> {fields}
//! ```

use std::fmt::{self, Write};
use std::io;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, LogLevel, LogOutput};

/// Sends all events of this process to the log.
pub fn begin(level: LogLevel, format: LogFormat, output: LogOutput) {
    let level = match level {
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Info => Level::INFO,
        LogLevel::Warn => Level::WARN,
        LogLevel::Error | LogLevel::Panic | LogLevel::Fatal => Level::ERROR,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .event_format(Line(format));
    // A second server in one process logs where the first does.
    let _ = match output {
        LogOutput::Stderr => {
            tracing::subscriber::set_global_default(subscriber.with_writer(io::stderr).finish())
        }
        LogOutput::Stdout => {
            tracing::subscriber::set_global_default(subscriber.with_writer(io::stdout).finish())
        }
    };
}

struct Line(LogFormat);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let caller = event.metadata().target();
        let mut fields = Fields::default();
        event.record(&mut fields);
        match self.0 {
            LogFormat::Json => {
                let mut line = Map::new();
                line.insert("level".into(), level.into());
                line.insert("ts".into(), time.into());
                line.insert("caller".into(), caller.into());
                line.insert("msg".into(), fields.message.into());
                line.append(&mut fields.others);
                writeln!(writer, "{}", Value::Object(line))
            }
            LogFormat::Console => {
                write!(writer, "{time}\t{level}\t{caller}\t{}", fields.message)?;
                if !fields.others.is_empty() {
                    write!(writer, "\t{}", Value::Object(fields.others))?;
                }
                writeln!(writer)
            }
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.others.insert(field.name().into(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(text, "{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.set(field, text);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }
}
