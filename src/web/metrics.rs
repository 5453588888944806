//! Is it alive, and how much is there to do: for probes and for Prometheus.

use super::Shared;
use crate::figures;
use crate::reconcile::gather;
use crate::store::Health;
use actix_web::HttpResponse;
use actix_web::web::Data;

/// 200 once deliveries can be taken; 503 with the reason while the store refuses them.
pub async fn healthz(shared: Data<Shared>) -> HttpResponse {
    match shared.world.store.health() {
        Health::Ready => HttpResponse::Ok().content_type("text/plain").body("ok\n"),
        Health::Refusing { .. } | Health::Poisoned { .. } => {
            HttpResponse::ServiceUnavailable().content_type("text/plain").body("the store takes no writes\n")
        }
    }
}

pub async fn metrics(shared: Data<Shared>) -> HttpResponse {
    match gather(&shared.world).await {
        Ok(families) => {
            HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(figures::text(&families))
        }
        Err(trouble) => shared.refuse("/metrics", &trouble.into()),
    }
}
