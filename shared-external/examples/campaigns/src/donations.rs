//! `POST /campaigns/{id}/donations`: booked once, however often it is sent.
//!
//! A key names one donation to one campaign. Sent again with another donation it is refused, for
//! somebody's money would be lost.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::App;
use crate::campaigns::forget;
use crate::error::{ApiError, NOT_FOUND};

/// Of the key and of the donor's name, in bytes.
const LONGEST: usize = 200;
const MOST_CENTS: i64 = 10_000_000_000;

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
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let key = key.filter(|key| (1..=LONGEST).contains(&key.len()));
    let key = key.ok_or(bad("the header Idempotency-Key must hold 1 to 200 letters"))?;
    let Donation { donor, amount_cents } = &donation;
    if !(1..=LONGEST).contains(&donor.len()) || donor.contains('\0') {
        return Err(bad("donor must hold 1 to 200 bytes, and no NUL"));
    }
    if !(1..=MOST_CENTS).contains(amount_cents) {
        return Err(bad("amount_cents must be from 1 to 10000000000"));
    }
    let receipt = book(&app, id, key, &donation).await?;
    forget(&app, id).await;
    let status = if receipt.repeated { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(receipt)))
}

fn bad(why: &'static str) -> ApiError {
    ApiError::Refused(StatusCode::BAD_REQUEST, why)
}

/// Books a donation in one transaction. Its key makes it safe to send again, whoever does.
async fn book(
    app: &App,
    id: i64,
    key: &str,
    Donation { donor, amount_cents }: &Donation,
) -> Result<Receipt, ApiError> {
    let amount_cents = *amount_cents;
    app.database
        .transaction(|mut tx| async move {
            let raised = "SELECT raised_cents FROM campaigns WHERE id = $1 FOR UPDATE";
            let raised = sqlx::query_scalar(raised).bind(id).fetch_optional(&mut *tx).await?;
            let Some(raised_cents) = raised else { return Ok(Err(NOT_FOUND)) };
            let before = "SELECT id, amount_cents = $3 AND donor = $4 FROM donations
                          WHERE campaign_id = $1 AND idempotency_key = $2";
            let before = sqlx::query_as(before).bind(id).bind(key).bind(amount_cents).bind(donor);
            match before.fetch_optional(&mut *tx).await? {
                Some((_, false)) => return Ok(Err(OTHER)),
                Some((donation_id, true)) => {
                    return Ok(Ok(Receipt { donation_id, amount_cents, raised_cents, repeated: true }));
                }
                None => {}
            }
            let insert = "INSERT INTO donations (campaign_id, amount_cents, donor, idempotency_key)
                          VALUES ($1, $2, $3, $4) RETURNING id";
            let insert = sqlx::query_scalar(insert).bind(id).bind(amount_cents).bind(donor).bind(key);
            let donation_id = insert.fetch_one(&mut *tx).await?;
            let add = "UPDATE campaigns SET raised_cents = raised_cents + $2 WHERE id = $1 RETURNING raised_cents";
            let raised_cents = sqlx::query_scalar(add).bind(id).bind(amount_cents).fetch_one(&mut *tx).await?;
            Ok(Ok(Receipt { donation_id, amount_cents, raised_cents, repeated: false }))
        })
        .await?
}

const OTHER: ApiError = ApiError::Refused(
    StatusCode::CONFLICT,
    "this Idempotency-Key was used for another donation to this campaign",
);
