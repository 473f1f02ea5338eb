# escape=x
# check=skip
# ESCAPE=`
# syntax=a
# syntax=a
FROM alpine
