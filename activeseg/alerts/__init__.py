"""Who is told what, and how: failures, idle annotators, drift and the morning report, by webhook and mail.

    watch           notes what needs telling and delivers what waits; called after every run of a job and at every look back
    morning_report  what the night did, as an alert
    send_test       one alert to try the ways with

Notes go to the table first (`db.alerts`), then out: a crash between the two sends later, or twice, but never loses.
"""

from activeseg.alerts.delivery import Channel, channels, deliver, send_test
from activeseg.alerts.report import morning_report
from activeseg.alerts.watching import watch

__all__ = ["Channel", "channels", "deliver", "morning_report", "send_test", "watch"]
