"""All settings in one file: environment (prefix ORDERLY_) over safe defaults; boots from a fresh clone."""

import json
import os
import secrets
from pathlib import Path

from config.look import UNFOLD  # noqa: F401  (how the desk looks)
from config.postgres import database_settings

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("ORDERLY_DATA_DIR") or BASE_DIR / "var").resolve()


def _words(name: str, default: str = "") -> list[str]:
    return [word.strip() for word in os.environ.get(name, default).split(",") if word.strip()]


def _secret_key() -> str:
    """The installation's own random key, made once and kept in the data directory for its owner only."""
    path = DATA_DIR / "secret.key"
    DATA_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        draft = DATA_DIR / f"secret.key.{os.getpid()}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(64))
        try:
            os.link(draft, path)  # only the first of two processes that start at once wins
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text()


def _site() -> dict[str, str]:
    """What processes must know of `[site]` before they can ask the database: `site load` and `serve` write it."""
    try:
        return json.loads((DATA_DIR / "site.json").read_text())
    except FileNotFoundError:
        return {}


# ------------------------------------------------------------------------------------------- the engine

SITE = _site()

# Everything binds to loopback until told otherwise.
ORDERLY_BIND = os.environ.get("ORDERLY_BIND", "127.0.0.1")
ORDERLY_HTTP_PORT = int(os.environ.get("ORDERLY_HTTP_PORT", "8000"))
ORDERLY_MLLP_PORT = int(os.environ.get("ORDERLY_MLLP_PORT", "2575"))
ORDERLY_MLLP_TLS_PORT = int(os.environ.get("ORDERLY_MLLP_TLS_PORT", "2576"))
ORDERLY_DICOM_PORT = int(os.environ.get("ORDERLY_DICOM_PORT", "11112"))
ORDERLY_DICOM_TLS_PORT = int(os.environ.get("ORDERLY_DICOM_TLS_PORT", "2762"))
ORDERLY_AE_TITLE = os.environ.get("ORDERLY_AE_TITLE", "ORDERLY")
# Set by `run` for a process that shows no page and decodes no pixels: it starts without what those need.
ORDERLY_HEADLESS = os.environ.get("ORDERLY_HEADLESS") == "1"
# What the DICOM door serves beside the archive itself: modules with `register(registry)` (pacs/dimse/registry.py).
ORDERLY_DIMSE_SERVICES = ["worklist.scp", "worklist.mpps"]
# Private storage SOP classes to take: UIDs, or `*`.
ORDERLY_PRIVATE_STORAGE = _words("ORDERLY_PRIVATE_STORAGE")
# A study that has been quiet for so long is matched with its order, and again when it has grown.
ORDERLY_SETTLE_SECONDS = float(os.environ.get("ORDERLY_SETTLE_SECONDS", "5"))
ORDERLY_UID_ROOT = os.environ.get("ORDERLY_UID_ROOT", SITE.get("uid_root", ""))
# Who rings for the workers: our own database, or redis://…, amqp://…; nothing but speed depends on it.
ORDERLY_BROKER = os.environ.get("ORDERLY_BROKER", "postgres")
ORDERLY_WORKER_THREADS = int(os.environ.get("ORDERLY_WORKER_THREADS", "8"))
# How others reach us, in what we tell them (FHIR Endpoint); empty: the address we listen on.
ORDERLY_PUBLIC_URL = os.environ.get("ORDERLY_PUBLIC_URL", "").rstrip("/")
# Who may see which study: judged with orders, above the archive that knows none.
ORDERLY_ACCESS_POLICY = "ris.portal.access.ByOrder"
# The TLS doors are off without a certificate (PEM files).
ORDERLY_TLS_CERTIFICATE = os.environ.get("ORDERLY_TLS_CERTIFICATE", "")
ORDERLY_TLS_KEY = os.environ.get("ORDERLY_TLS_KEY", "")
ORDERLY_TLS_CA = os.environ.get("ORDERLY_TLS_CA", "")

# ------------------------------------------------------------------------------------------------ Django

SECRET_KEY = os.environ.get("ORDERLY_SECRET_KEY") or _secret_key()
DEBUG = os.environ.get("ORDERLY_DEBUG") == "1"
ALLOWED_HOSTS = _words("ORDERLY_HOSTS", "127.0.0.1,localhost,[::1]")
CSRF_TRUSTED_ORIGINS = _words("ORDERLY_ORIGINS")

INSTALLED_APPS = [
    "unfold.apps.BasicAppConfig",
    "common.desk_app.DeskConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "django_htmx",
    "common",
    "pacs",
    "ris",
    "worklist",
    "integration",
    "config",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "config.navigation.everywhere",
            ]
        },
    }
]
# A process forked after its first query must not share the parent's connections: the supervisor starts its
# children by exec, and whoever forks (DICOM, gunicorn) does so before the first query.
DATABASES = {
    "default": database_settings(
        DATA_DIR, os.environ.get("DATABASE_URL"), pool_size=int(os.environ.get("ORDERLY_DB_POOL", "16"))
    )
}
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
# Deny by default: a REST view that names no roles opens for nobody (common/roles.py).
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "common.roles.BearerAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["common.roles.RolePermission"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
}
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 12 * 3600
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = os.environ.get("ORDERLY_HTTPS") == "1"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "SAMEORIGIN"
USE_TZ = True
TIME_ZONE = os.environ.get("ORDERLY_TIME_ZONE", SITE.get("timezone", "UTC"))
LANGUAGE_CODE = "en"
FORMAT_MODULE_PATH = "config.formats"
STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
EMAIL_HOST = os.environ.get("ORDERLY_SMTP_HOST", "localhost")
EMAIL_PORT = int(os.environ.get("ORDERLY_SMTP_PORT", "25"))
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = SERVER_EMAIL = os.environ.get("ORDERLY_MAIL_FROM", "orderly@localhost")

# Log lines carry ids, never health data: no request line with its query, no message text.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("ORDERLY_LOG_LEVEL", "INFO")},
    "loggers": {
        "django.server": {"level": "WARNING"},
        "pynetdicom": {"level": "ERROR"},
        "pydicom": {"level": "ERROR"},
    },
}
