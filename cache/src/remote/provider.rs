//! The providers of object stores, and the credentials for them: from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`), the
//! machine's own identity where it has one, and the usual files; never from a pipeline or a setting.

use std::{fs, io::Read as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    multipart::MultipartStore,
};

use super::RemoteConfig;

/// A bucket, for what is put there at once and in parts. `patience`: how long it may say nothing, also while something
/// is sent to it.
pub(crate) fn build(
    scheme: &str,
    bucket: &str,
    config: &RemoteConfig,
    patience: Option<Duration>,
) -> Result<(Arc<dyn ObjectStore>, Arc<dyn MultipartStore>)> {
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(3),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(30),
    };
    let plain = config.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let client = ClientOptions::new()
        .with_allow_http(true)
        // A machine without certificates still speaks plain HTTP.
        .with_no_system_certificates(plain)
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(5));
    let client = match patience {
        Some(patience) => client.with_read_timeout(patience),
        None => client,
    };
    Ok(match scheme {
        "s3" => {
            let mut builder = AmazonS3Builder::from_env();
            for (key, value) in aws_files() {
                if builder.get_config_value(&key).is_none() {
                    builder = builder.with_config(key, value);
                }
            }
            builder = builder.with_bucket_name(bucket).with_retry(retry).with_client_options(client);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            if let Some(region) = &config.region {
                builder = builder.with_region(region);
            }
            let store = Arc::new(builder.build()?);
            (Arc::clone(&store) as _, store)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_retry(retry)
                .with_client_options(client);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            let store = Arc::new(builder.build()?);
            (Arc::clone(&store) as _, store)
        }
        "az" => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_retry(retry)
                .with_client_options(client);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            let store = Arc::new(builder.build()?);
            (Arc::clone(&store) as _, store)
        }
        _ => bail!("`{scheme}` is no object store"),
    })
}

/// What `~/.aws/credentials` and `~/.aws/config` say of `$AWS_PROFILE`.
fn aws_files() -> Vec<(AmazonS3ConfigKey, String)> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".into());
    let file = |named: &str, usual: &str| {
        variable(named).map(PathBuf::from).or_else(|| Some(PathBuf::from(variable("HOME")?).join(".aws").join(usual)))
    };
    let mut found = Vec::new();
    let sections = [profile.clone(), format!("profile {profile}")];
    for path in [file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), file("AWS_CONFIG_FILE", "config")] {
        let mut text = String::new();
        let read =
            path.and_then(|path| fs::File::open(path).ok()).and_then(|mut file| file.read_to_string(&mut text).ok());
        if read.is_some() {
            found.extend(ini(&text, &sections));
        }
    }
    found
}

fn ini(text: &str, sections: &[String]) -> Vec<(AmazonS3ConfigKey, String)> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = sections.iter().any(|wanted| wanted == section.trim());
        } else if inside && let Some((key, value)) = line.split_once('=') {
            let key = match key.trim() {
                "aws_access_key_id" => AmazonS3ConfigKey::AccessKeyId,
                "aws_secret_access_key" => AmazonS3ConfigKey::SecretAccessKey,
                "aws_session_token" => AmazonS3ConfigKey::Token,
                "region" => AmazonS3ConfigKey::Region,
                "endpoint_url" => AmazonS3ConfigKey::Endpoint,
                _ => continue,
            };
            found.push((key, value.trim().to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_files_are_read() {
        let text = "[other]\nregion = no\n[ default ]\naws_access_key_id=AK\n# x\naws_secret_access_key = s=k\n[more]\nregion=no";
        let found = ini(text, &["default".into()]);
        assert_eq!(
            found,
            [(AmazonS3ConfigKey::AccessKeyId, "AK".into()), (AmazonS3ConfigKey::SecretAccessKey, "s=k".into())]
        );
    }
}
