//! The server: pages, and what is new of them as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::Result;
use flow_cache::Cache;
use flow_engine::History;
use http_body_util::{Channel, Either, Full, channel::Sender};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use maud::html;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, time};

use super::{
    guard::{Guard, Verdict},
    hub::{Hub, Picture, Seen},
    log,
};
use crate::report::page::{self, Section};

type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// Who sends no request for so long is left.
const PATIENCE: Duration = Duration::from_secs(20);
/// Something is sent at least so often, so that it is noticed who has gone.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// After it could not take a connection (too many files are open) it waits so long.
const BREATH: Duration = Duration::from_millis(100);

/// Answers for as long as the process lives.
pub async fn serve(listener: TcpListener, hub: Arc<Hub>, guard: Arc<Guard>, cache: Cache) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            time::sleep(BREATH).await;
            continue;
        };
        let (hub, guard, cache) = (Arc::clone(&hub), Arc::clone(&guard), cache.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let (hub, guard, cache) = (Arc::clone(&hub), Arc::clone(&guard), cache.clone());
                async move { Ok::<_, Infallible>(answer(request, &hub, &guard, cache).await) }
            });
            let mut server = http1::Builder::new();
            let server = server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // Who goes away in the middle of it is nobody's error.
            server.serve_connection(TokioIo::new(stream), answer).await.ok();
        });
    }
}

async fn answer(request: Request<Incoming>, hub: &Hub, guard: &Guard, cache: Cache) -> Response<Body> {
    let mut response = match guard.judge(request.headers(), request.uri().query()) {
        Verdict::Elsewhere => text(StatusCode::FORBIDDEN, "This server is not known by that name."),
        Verdict::Stranger => text(StatusCode::UNAUTHORIZED, "Open the address that `flow ui` printed, with its token."),
        Verdict::Keep(cookie) => {
            let mut response = see(request.uri().path());
            response.headers_mut().extend(HeaderValue::from_str(&cookie).map(|cookie| (header::SET_COOKIE, cookie)));
            response
        }
        Verdict::Welcome if request.method() != Method::GET => {
            text(StatusCode::METHOD_NOT_ALLOWED, "This server only shows.")
        }
        Verdict::Welcome => route(&request, hub, cache).await,
    };
    let policy = format!("{}; frame-ancestors 'none'", page::policy(true));
    let always = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let headers = response.headers_mut();
    headers.extend(always.map(|(name, value)| (name, HeaderValue::from_static(value))));
    headers.extend(HeaderValue::from_str(&policy).map(|policy| (header::CONTENT_SECURITY_POLICY, policy)));
    response
}

async fn route(request: &Request<Incoming>, hub: &Hub, cache: Cache) -> Response<Body> {
    let parts: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    match parts[..] {
        [""] => shown(hub, None).await,
        ["run", "last"] => read(move || Ok(newest(&cache)?.map(|id| see(&format!("/run/{id}"))))).await,
        ["run", id, "log"] if is_id(id) => {
            let (id, query) = (id.to_owned(), request.uri().query().unwrap_or_default().to_owned());
            let page = move || log::show(&History::open(&cache), &id, &query);
            read(move || Ok(page()?.map(|page| full(StatusCode::OK, "text/html; charset=utf-8", page)))).await
        }
        ["run", id] if is_id(id) => shown(hub, Some(id)).await,
        ["events"] => follow(hub.look(None), seen(request)),
        ["events", id] if is_id(id) => follow(hub.look(Some(id.to_owned())), seen(request)),
        _ => text(StatusCode::NOT_FOUND, "There is no such page. / lists the runs."),
    }
}

/// What is read of the disk for one answer alone.
async fn read(answer: impl FnOnce() -> Result<Option<Response<Body>>> + Send + 'static) -> Response<Body> {
    match tokio::task::spawn_blocking(answer).await.map_err(anyhow::Error::from).flatten() {
        Ok(Some(response)) => response,
        Ok(None) => text(StatusCode::NOT_FOUND, "There is no such run, or it has no such log. / lists the runs."),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
    }
}

/// The id of the newest run.
fn newest(cache: &Cache) -> Result<Option<String>> {
    Ok(History::open(cache).list()?.next().map(|run| run.id))
}

/// Ids are dates, and never paths.
fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() < 64 && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// The serial of what the page has that asks.
fn seen(request: &Request<Incoming>) -> u64 {
    let last = request.headers().get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let asked = || request.uri().query()?.strip_prefix("seen=")?.parse().ok();
    last.or_else(asked).unwrap_or(0)
}

/// A page.
async fn shown(hub: &Hub, run: Option<&str>) -> Response<Body> {
    let mut look = hub.look(run.map(str::to_owned));
    let Ok(picture) = look.wait_for(Option::is_some).await.map(|picture| picture.clone()) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "The runs cannot be read.");
    };
    let Some(picture) = picture else { return text(StatusCode::NOT_FOUND, "There is nothing to see.") };
    let sections: Vec<Section> = picture.sections.iter().map(Seen::section).collect();
    let events = match run {
        Some(id) => format!("/events/{id}?seen={}", picture.serial),
        None => format!("/events?seen={}", picture.serial),
    };
    let foot =
        html! { "Shown by flow " (env!("CARGO_PKG_VERSION")) ". It reads what runs write down, and changes nothing." };
    let page = page::page(&picture.title, &sections, &picture.charts.html, Some(&events), &foot);
    let status = if picture.over == Some("gone") { StatusCode::NOT_FOUND } else { StatusCode::OK };
    full(status, "text/html; charset=utf-8", page)
}

/// What is new, as it comes.
fn follow(mut look: watch::Receiver<Option<Arc<Picture>>>, mut seen: u64) -> Response<Body> {
    let (mut sender, body) = Channel::new(4);
    tokio::spawn(async move {
        loop {
            let picture = look.borrow_and_update().clone();
            if let Some(picture) = picture {
                if send(&mut sender, &picture, seen).await.is_err() || picture.over.is_some() {
                    return;
                }
                seen = picture.serial;
            }
            match time::timeout(SIGN_OF_LIFE, look.changed()).await {
                Ok(Err(_)) => return,
                Ok(Ok(())) => {}
                Err(_) => {
                    if sender.send_data(Bytes::from_static(b":\n\n")).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    let mut response = Response::new(Either::Right(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// Sends what has changed; an error if nobody takes it.
async fn send(sender: &mut Sender<Bytes>, picture: &Picture, seen: u64) -> Result<(), ()> {
    let mut text = String::new();
    let mut event =
        |name: &str, data: &str| text += &format!("event: {name}\nid: {}\ndata: {data}\n\n", picture.serial);
    if picture.charts.changed > seen {
        event("charts", &picture.charts.html);
    }
    for section in picture.sections.iter().filter(|section| section.changed > seen) {
        event("section", &json!({ "id": section.id, "html": section.html }).to_string());
    }
    if picture.serial > seen {
        event("title", &json!(format!("{} · flow", picture.title)).to_string());
    }
    if let Some(over) = picture.over {
        event("end", &json!(over).to_string());
    }
    if text.is_empty() { Ok(()) } else { sender.send_data(text.into()).await.map_err(drop) }
}

fn see(path: &str) -> Response<Body> {
    let mut response = text(StatusCode::SEE_OTHER, "");
    response.headers_mut().extend(HeaderValue::from_str(path).map(|path| (header::LOCATION, path)));
    response
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    full(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn full(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
