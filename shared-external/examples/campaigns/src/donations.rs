//! `POST /campaigns/{id}/donations`: booked once, however often it is sent.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::App;
use crate::campaigns::forget;
use crate::error::{ApiError, NOT_FOUND};

/// `{"donor": "Ada", "amount_cents": 2500}`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Donation {
    donor: String,
    amount_cents: i64,
}

/// `{"donation_id", "amount_cents", "raised_cents", "repeated"}`
#[derive(Debug, Serialize)]
pub(crate) struct Receipt {
    donation_id: i64,
    amount_cents: i64,
    raised_cents: i64,
    /// Whether it had been booked before.
    repeated: bool,
}

pub(crate) async fn donate(
    State(app): State<App>,
    Path(id): Path<i64>,
    headers: HeaderMap,
    Json(donation): Json<Donation>,
) -> Result<(StatusCode, Json<Receipt>), ApiError> {
    let key = headers
        .get("idempotency-key")
        .and_then(|key| key.to_str().ok())
        .filter(|key| !key.is_empty());
    let key = key.ok_or(ApiError::Refused(
        StatusCode::BAD_REQUEST,
        "the header Idempotency-Key is missing",
    ))?;
    if donation.amount_cents <= 0 {
        return Err(ApiError::Refused(StatusCode::BAD_REQUEST, "amount_cents must be above 0"));
    }
    let receipt = book(&app, id, key, &donation).await?.ok_or(NOT_FOUND)?;
    if receipt.amount_cents != donation.amount_cents {
        return Err(ApiError::Refused(
            StatusCode::CONFLICT,
            "this Idempotency-Key was used for another amount",
        ));
    }
    forget(&app, id).await;
    let status = if receipt.repeated { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(receipt)))
}

/// Books a donation in one transaction. Its key makes it safe to send again, whoever does.
async fn book(
    app: &App,
    id: i64,
    key: &str,
    donation: &Donation,
) -> Result<Option<Receipt>, ApiError> {
    let booked = app
        .database
        .transaction(|mut tx| async move {
            let raised = "SELECT raised_cents FROM campaigns WHERE id = $1 FOR UPDATE";
            let Some(raised) = sqlx::query_scalar::<_, i64>(raised).bind(id).fetch_optional(&mut *tx).await? else {
                return Ok(None);
            };
            let insert = "INSERT INTO donations (campaign_id, amount_cents, donor, idempotency_key)
                          VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING id";
            let insert = sqlx::query_scalar(insert).bind(id).bind(donation.amount_cents).bind(&donation.donor).bind(key);
            let Some(donation_id) = insert.fetch_optional(&mut *tx).await? else {
                let before = "SELECT id, amount_cents FROM donations WHERE campaign_id = $1 AND idempotency_key = $2";
                let (donation_id, amount_cents) = sqlx::query_as(before).bind(id).bind(key).fetch_one(&mut *tx).await?;
                return Ok(Some(Receipt { donation_id, amount_cents, raised_cents: raised, repeated: true }));
            };
            let add = "UPDATE campaigns SET raised_cents = raised_cents + $2 WHERE id = $1 RETURNING raised_cents";
            let raised_cents = sqlx::query_scalar(add).bind(id).bind(donation.amount_cents).fetch_one(&mut *tx).await?;
            Ok(Some(Receipt { donation_id, amount_cents: donation.amount_cents, raised_cents, repeated: false }))
        })
        .await?;
    Ok(booked)
}
