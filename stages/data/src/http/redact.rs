//! URLs without secrets, for keys, lock files, logs and errors.

use reqwest::Url;

/// Names of query parameters that carry secrets (in lower case).
const SECRETS: [&str; 18] = [
    "token",
    "access_token",
    "private_token",
    "auth_token",
    "auth",
    "authorization",
    "client_secret",
    "credential",
    "jwt",
    "api_key",
    "apikey",
    "access_key",
    "secret",
    "password",
    "passwd",
    "sig",
    "signature",
    "job_token",
];

/// Beginnings of names of query parameters of signed URLs.
const SIGNED: [&str; 3] = ["x-amz-", "x-goog-", "awsaccesskeyid"];

/// The URL without user, password, and the query parameters that carry secrets. What is no URL is returned as it is.
pub fn redacted(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return text.to_owned() };
    let query = url.query().unwrap_or_default();
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_secret(pair)).collect();
    let has_user = !url.username().is_empty() || url.password().is_some();
    if !has_user && kept.len() == query.split('&').count() {
        return text.to_owned();
    }
    let kept = kept.join("&");
    url.set_query((!kept.is_empty()).then_some(&kept));
    // Fails for URLs that cannot have a user, which then have none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

fn is_secret(pair: &str) -> bool {
    let name = pair.split('=').next().unwrap_or_default().to_lowercase();
    SECRETS.contains(&name.as_str()) || SIGNED.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_and_the_rest_stays_as_written() {
        for same in ["https://h.example/a%20b?ref_type=heads&x=1", "http://127.0.0.1:80/a?", "data/a.jsonl", "hf://a/b"]
        {
            assert_eq!(redacted(same), same);
        }
        for (url, without) in [
            ("https://me:pw@h.example/a", "https://h.example/a"),
            ("https://h.example/a?private_token=x&ref=main", "https://h.example/a?ref=main"),
            ("https://h.example/a?Token=x", "https://h.example/a"),
            ("https://h.example/a?X-Amz-Signature=1&X-Amz-Date=2&v=3", "https://h.example/a?v=3"),
        ] {
            assert_eq!(redacted(url), without);
        }
    }
}
