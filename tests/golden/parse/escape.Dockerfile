# escape=`
FROM alpine
RUN dir C:\ `
    && more
ENV A=`"quoted`" B=C:\
