//! What a registry says that a tag is: the distribution API of the Open Container Initiative.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use flow_core::{Ctx, Level};
use reqwest::{StatusCode, Url, header};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::image::Reference;
use crate::http::{Failure, Http, wait};

/// What a tag may stand for: an image, or one for each kind of machine.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// The digest of what a tag stands for: of the bytes that the registry gives.
///
/// # Errors
/// It does not answer, has none, or wants credentials that nobody gave.
pub fn digest(ctx: &Ctx<'_>, http: &Http, reference: &Reference) -> Result<String> {
    let Reference { registry, name, tag, .. } = reference;
    let tag = tag.as_deref().unwrap_or("latest");
    let scheme = if reference.is_here() { "http" } else { "https" };
    let url = Url::parse(&format!("{scheme}://{registry}/v2/{name}/manifests/{tag}"))
        .with_context(|| format!("{registry} is no host"))?;
    let say = |text: String| ctx.log(Level::Warning, text);
    let body = wait(ctx, async {
        let body = http.patiently(&say, async || manifest(http, &url, reference).await.map_err(|failure| (failure, 0)));
        body.await.map_err(|failure| explain(reference, failure))
    })?;
    let digest = Sha256::digest(&body);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let manifest: Json = serde_json::from_slice(&body).with_context(|| format!("{url} is no manifest of an image"))?;
    ensure!(
        manifest["schemaVersion"] == 2,
        "{url} is no manifest of an image that is known: {}",
        manifest["schemaVersion"]
    );
    Ok(format!("sha256:{hex}"))
}

async fn manifest(http: &Http, url: &Url, reference: &Reference) -> Result<Vec<u8>, Failure> {
    let mut headers = header::HeaderMap::from_iter([(header::ACCEPT, header::HeaderValue::from_static(ACCEPT))]);
    let mut answer = http.ask(url, headers.clone()).await?;
    if answer.status() == StatusCode::UNAUTHORIZED {
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<&str> = challenges.iter().filter_map(|value| value.to_str().ok()).collect();
        if let Some(way) = authorization(http, &challenges, reference).await? {
            headers.insert(header::AUTHORIZATION, way);
            answer = http.ask(url, headers).await?;
        }
    }
    if !answer.status().is_success() {
        return Err(Failure::refused(url, &answer));
    }
    let body = answer.bytes().await.map_err(|error| Failure::broken(url, error))?;
    Ok(body.to_vec())
}

/// What to show a registry that asks who one is: most ask nobody in particular, and give a token to everybody.
async fn authorization(
    http: &Http,
    challenges: &[&str],
    reference: &Reference,
) -> Result<Option<header::HeaderValue>, Failure> {
    let basic = credentials(&reference.registry);
    let secret = |text: String| {
        let mut value = header::HeaderValue::from_str(&text).map_err(|error| Failure::here(error.into()))?;
        value.set_sensitive(true);
        Ok(value)
    };
    let bearer = challenges.iter().find_map(|challenge| challenge.strip_prefix("Bearer "));
    let Some(bearer) = bearer else {
        return basic.map(|basic| secret(format!("Basic {basic}"))).transpose();
    };
    let value = |name: &str| {
        let rest = bearer.split_once(&format!("{name}=\""))?.1;
        rest.split_once('"').map(|(value, _)| value)
    };
    let wrong = || Failure::here(anyhow!("{} asks for credentials in a way that is not known", reference.registry));
    let mut url = value("realm").and_then(|realm| Url::parse(realm).ok()).ok_or_else(wrong)?;
    // A password goes to nobody in plain text.
    let may_tell = url.scheme() == "https" || reference.is_here();
    let scope = format!("repository:{}:pull", reference.name);
    for (name, value) in [("service", value("service")), ("scope", Some(scope.as_str()))] {
        value.map(|value| url.query_pairs_mut().append_pair(name, value).finish().as_str().len());
    }
    let mut headers = header::HeaderMap::new();
    if let Some(basic) = basic.filter(|_| may_tell) {
        headers.insert(header::AUTHORIZATION, secret(format!("Basic {basic}"))?);
    }
    let answer = http.get(&url, headers).await?;
    let answer = answer.bytes().await.map_err(|error| Failure::broken(&url, error))?;
    let answer: Json = serde_json::from_slice(&answer).map_err(|error| Failure::here(error.into()))?;
    let token = [&answer["token"], &answer["access_token"]].into_iter().find_map(Json::as_str).ok_or_else(wrong)?;
    secret(format!("Bearer {token}")).map(Some)
}

/// What `docker login` and its like wrote down for a registry.
fn credentials(registry: &str) -> Option<String> {
    let place = |variable: &str, below: &str| Some(PathBuf::from(env::var_os(variable)?).join(below));
    let files = [
        env::var_os("REGISTRY_AUTH_FILE").map(PathBuf::from),
        place("XDG_RUNTIME_DIR", "containers/auth.json"),
        place("DOCKER_CONFIG", "config.json"),
        place("HOME", ".docker/config.json"),
        place("HOME", ".apptainer/docker-config.json"),
    ];
    let names: &[&str] = if registry == "registry-1.docker.io" {
        &["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"]
    } else {
        &[registry]
    };
    files.into_iter().flatten().find_map(|file| {
        let known: Json = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        let auth = names.iter().find_map(|name| known["auths"][name]["auth"].as_str())?;
        Some(auth.to_owned())
    })
}

fn explain(reference: &Reference, failure: Failure) -> anyhow::Error {
    let Reference { registry, name, tag, .. } = reference;
    let tag = tag.as_deref().unwrap_or_default();
    let what = match failure.status.map(|status| status.as_u16()) {
        Some(401 | 403) => format!(
            "{registry} does not show {name}:{tag} to you: log in (`docker login {registry}`), or check the name"
        ),
        Some(404) => format!("{registry} has no {name}:{tag}"),
        _ => format!("what {name}:{tag} is cannot be asked of {registry}"),
    };
    failure.error.context(what)
}
